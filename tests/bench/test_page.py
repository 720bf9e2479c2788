"""Pages of benchmark results: what they say follows from the rounds, whatever a result has; hostile files are refused."""

import json
import math
import re
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mkdocs.config import load_config
from mkdocs.structure.files import Files

from beton_tools.base.errors import UserError
from fastft.bench.page.bars import BANDWIDTH_LIMIT, describe_ratio, describe_setting, measure_figures
from fastft.bench.page.comparison import compare, render_comparison, write_bench_page
from fastft.bench.page.one import line_chart, render_bench
from fastft.cli import main
from fastft.cost.cores import demands
from fastft.cost.price import CostQuery, price_recipes
from fastft.machine.bench_result import Case, Measure, Processor, Result, read_result, spread, write_result
from fastft.recipe import load_recipe
from fastft.report.page import figure
from tests.bench import made_up
from tests.bench.made_up import GPU, MADE_UP, Maker, measure, result

DOCS = Path(__file__).parents[2] / "docs"


def plain(page: str) -> str:
    """The text of a page in one line, without the style sheet."""
    body = page[page.index("<main>") :]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body)).replace("&#39;", "'")


def compared(*results: Result) -> str:
    return render_comparison(compare(results))


def of(measure: Measure) -> Result:
    return result(measures=[measure])


# what the page says ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", [None, GPU])
def test_every_median_and_range_is_on_the_page(gpu):
    one = result(gpu=gpu)
    page = render_bench(one)
    for contender in (c for m in one.measures for case in m.cases for c in case.measured):
        value = spread(contender)
        assert all(figure(number) in page for number in (value.median, value.low, value.high))
    assert MADE_UP in page and made_up.COMMAND in page and "commit 01234567" in page and "avx2" in page
    assert "DALI GPU was skipped: not installed: pip install nvidia-dali-cuda120" in page


def test_the_first_sentences_are_computed_from_the_rounds():
    one = result()
    rates, originals = (one.measure(f"loader.recipe{which}.core").cases[0] for which in ("", "-originals"))
    text = plain(render_bench(one))
    own, other = (spread(case.contender()) for case in (rates, originals))
    said = [f"{figure(value.median)} ({figure(value.low)}–{figure(value.high)})" for value in (own, other)]
    assert f"one core decodes and augments {said[0]} images per second from 500 px files and {said[1]} from" in text
    pairs = zip(rates.contender().rounds, rates.contender("timm").rounds, strict=True)
    assert f"That is {median(a.value / b.value for a, b in pairs):.1f}×" in text
    assert "the throughput of simplejpeg, OpenCV, the fastest of the seven others." in text


def test_cores_are_the_images_of_the_step_over_those_of_a_core():
    one = result()
    rates = one.measure("loader.recipe.core").cases[0]
    (h100,) = (d for d in demands(one) if (d.recipe, d.gpu) == ("final_b16", "H100"))
    needed = [
        "–".join(
            f"{math.ceil(rate / spread(rates.contender(name)).median)}"
            for rate in (h100.images_per_second.low, h100.images_per_second.high)
        )
        for name in ("fastft", "timm")
    ]
    (priced,) = price_recipes([load_recipe("final_b16")], CostQuery("h100", cores_per_gpu=1000)).recipes
    rate_of = {e.basis: 8 * e.images_per_second_per_gpu for e in priced.estimates}
    found = h100.images_per_second
    assert (found.low, found.median, found.high) == pytest.approx(
        [rate_of[b] for b in ("slowest", "middle", "fastest")]
    )
    text = plain(render_bench(one))
    assert f"need {needed[0]} CPU cores with fastft and {needed[1]} with timm" in text and "(modelled)" in text


def test_a_measured_step_replaces_the_modelled_one():
    one = result(gpu="NVIDIA H100 80GB HBM3")
    measured = [d for d in demands(one) if d.measured]
    assert [(d.recipe, d.gpu) for d in measured] == [("final_b16", "H100")]
    own = one.measure("step.train").cases[0].contender()
    assert (
        measured[0].images_per_second.high == measured[0].images_per_second.low == pytest.approx(8 * spread(own).median)
    )
    assert "(measured)" in plain(render_bench(one))


def test_a_gpu_has_kernels_against_bandwidth_copy_and_waiting():
    one = result(gpu=GPU)
    text = plain(render_bench(one))
    assert "On the GPU" in text and "moves 1.40 GB" in text and "60% of it" in text
    assert "MFU 26.0 %; waiting for data 0.4 %" in text and "at an MFU of 26.0 %" in text
    kernels = one.measure("augment.gpu")
    own, limit = measure_figures(kernels)[0].bars
    assert limit.name == BANDWIDTH_LIMIT and limit.spread.median == pytest.approx(0.6 * own.spread.median)


def test_a_bar_is_as_long_as_its_share_of_the_axis():
    (drawn,) = measure_figures(measure("m", "M", [Maker().case({"fastft": 100, "peer": 40})]))
    long, short = (float(drawn.place(bar.spread.median).rstrip("%")) for bar in drawn.bars)
    assert short / long == pytest.approx(drawn.bars[1].spread.median / drawn.bars[0].spread.median, abs=0.001)
    assert 90 < float(drawn.place(drawn.bars[0].spread.high).rstrip("%")) < 100


def test_a_limit_that_a_round_exceeds_is_no_whole_of_which_there_are_shares():
    from fastft.machine.bench_result import Spread

    assert describe_ratio(Spread(0.81, 0.78, 0.9), "images/s", limit=True) == ("81% of it", "78%–90%")
    assert describe_ratio(Spread(0.98, 0.9, 1.04), "images/s", limit=True) == ("0.98× it", "0.90–1.04")


@pytest.mark.parametrize(
    ("values", "unit", "said"),
    [
        ((6.0, 5.8, 6.2), "images/s", ("6.0× faster", "5.8–6.2")),
        ((0.5, 0.4, 0.8), "images/s", ("2.0× slower", "1.2–2.5")),
        ((1.001, 0.9, 1.1), "images/s", ("level", "0.90–1.10")),
        ((1.5, 1.5, 1.5), "MB", ("1.50× smaller", "")),
    ],
)
def test_ratios_say_who_is_faster(values, unit, said):
    from fastft.machine.bench_result import Spread

    assert describe_ratio(Spread(*values), unit) == said


@pytest.mark.parametrize("key", [m.key for m in result(gpu=GPU).measures])
def test_a_page_needs_no_particular_measure(key):
    whole = result(gpu=GPU)
    one = result(gpu=GPU, measures=[whole.measure(key)])
    assert one.measures[0].title in plain(render_bench(one))


def test_the_whole_recipe_comes_first():
    text = plain(render_bench(result()))
    order = [
        text.index(name)
        for name in ("Loader, whole recipe, one", "Loader, whole recipe, original", "Decoding a random")
    ]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"size": 224, "threads": 1}, "224 px, 1 thread"),
        ({"size": "kept", "samples": 20_000_000, "files": 64}, "kept, 20,000,000 samples, 64 files"),
        ({"files": "500 px files", "kB per image": 61.5}, "500 px files, 61.5 kB per image"),
    ],
)
def test_settings_are_read_as_words(setting, words):
    assert describe_setting(setting) == words


def test_a_busy_machine_is_told():
    one = result()
    assert "busy machine" not in render_bench(one)
    one.sessions[0].load_before = 20.5
    assert "the load was up to 20.5 on 16 cores before the benchmark began" in plain(render_bench(one))


def test_load_that_begins_after_the_start_is_told_with_the_measure():
    one = result()
    case = one.measure("decode.crop").cases[0]
    for r in (r for c in case.contenders for r in c.rounds):
        r.foreign = 0.9
    assert one.measure("decode.crop").foreign == pytest.approx(0.9)
    assert "busy machine" not in render_bench(one)  # less than a tenth of 16 cores
    assert "Other programs kept 0.90 cores busy meanwhile." in plain(render_bench(one))
    case.contenders[0].rounds[0].foreign = 60.0
    text = plain(render_bench(one))
    assert "kept up to 3.9 of 16 cores busy while 1 of 14 measures ran, most in “Decoding a random crop”" in text
    assert "3.9 cores kept busy by other programs, by measure" in text


def test_the_evidence_is_on_the_page():
    one = result()
    one.images.sha256 = "ab" * 32
    one.sessions[0].betons = {"500 px files": "cd" * 32}
    one.machine.processor = Processor(vendor="AuthenticAMD", family="26", model="2", stepping="1", is_virtual=True)
    one.machine.packages = {"numpy": "2.4.6", "rich": "14"}
    text = plain(render_bench(one))
    assert "abababababababab… (images), cdcdcdcdcdcdcdcd… (.beton of 500 px files)" in text
    assert (
        "AuthenticAMD, family 26, model 2, stepping 1, virtual machine" in text and "2, listed in the JSON file" in text
    )


def test_a_quick_run_has_no_bold_headlines():
    one = result()
    headline = "With fastft, one core decodes and augments"
    assert 'class="remember"' in render_bench(one) and '<p class="sentence">' in render_bench(one)
    one.quick = True
    for page in (render_bench(one), compared(one, result())):
        assert "mean nothing" in page and 'class="remember"' not in page and 'class="sentence"' not in page
        assert "<b>" not in page[page.index("</header>") : page.index("<h2>")]
    said = re.search(f'<p class="note">({headline}[^<]*)</p>', render_bench(one))
    assert said and "images per second from 500 px files" in said[1]


def test_measures_with_the_same_title_are_told_apart():
    made = [measure(f"m.{k}", "Loader", [Maker().case({"fastft": 1})], setting={"files": k, "size": 224}) for k in "ab"]
    text = plain(render_bench(result(measures=made)))
    assert "Loader, a" in text and "Loader, b" in text and "Loader, a, 224 px" not in text


def test_a_result_without_measures_or_without_fastft_has_a_page():
    assert "Method" in render_bench(result(measures=[]))
    alone = of(measure("loader.recipe.core", "Whole recipe", [Maker().case({"timm": 200})]))
    skipped = of(measure("x", "X", [Case(setting={}, contenders=[])]))
    assert "200" in figure(200) and "timm" in render_bench(alone) and render_bench(skipped)


def test_names_cannot_break_out_of_the_page():
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    case = Maker().case({"fastft": 2, evil: 1}, threads=1)
    case.contenders[1].differences = [evil]
    several = [case, Maker().case({"fastft": 2, evil: 1}, threads=2)]
    one = of(measure("loader.recipe", evil, several, evil))
    one.notes, one.machine.cpu, one.commit, one.sessions[0].command = [evil], evil, evil, evil
    for page in (render_bench(one), compared(one, one)):
        assert "<script>alert" not in page and "<img" not in page


def test_the_documentation_has_a_page_of_every_stored_result_and_a_comparison_of_processors(tmp_path):
    write_result(tmp_path / "one.json", result())
    (tmp_path / "demo.json").write_text('{"top1": 1}')
    (tmp_path / "list.json").write_text("[1]")
    config = load_config(str(DOCS.parent / "mkdocs.yml"))
    config.hooks["docs/bench_pages.py"].RESULTS = tmp_path

    def pages() -> dict[str, str]:
        files = config.plugins.on_files(Files([]), config=config)
        return {file.src_uri: file.content_string for file in files if file.src_uri.startswith("bench/")}

    assert list(pages()) == ["bench/one.html"] and MADE_UP in pages()["bench/one.html"]
    write_result(tmp_path / "two.json", result(cpu="another"))
    assert "Benchmarks compared" in pages()["bench/compared.html"]


# several files --------------------------------------------------------------------------------------------------------


def test_files_are_told_apart_by_what_differs_and_compared_measure_by_measure():
    old = result(commit="a" * 40)
    new = result(commit="b" * 40, seed=1, scale=1.2)
    text = plain(compared(old, new))
    assert "A fastft 0.3.0, commit aaaaaaaa" in text and "B fastft 0.3.0, commit bbbbbbbb" in text
    assert "made-up processor A" not in text
    rates = [spread(r.measure("loader.recipe.core").cases[0].contender()).median for r in (old, new)]
    assert all(figure(rate) in text for rate in rates)
    (whole,) = (c for c in compare([old, new]).changes if c.shared.measure.key == "loader.recipe.core")
    assert f"{whole.verdict.ratio:.2f}× {whole.verdict.low:.2f}–{whole.verdict.high:.2f}" in text
    assert whole.verdict.ratio == pytest.approx(rates[1] / rates[0], rel=0.03)
    faster = sum(m.better == "higher" for m in old.measures for case in m.cases if case.contender())
    slower = sum(m.better == "lower" for m in old.measures for case in m.cases if case.contender())
    assert f"Of {faster + slower} figures of fastft, {faster} are better and {slower} are worse on B than on A" in text


def test_equal_rounds_cannot_tell():
    text = plain(compared(result(seed=0), result(seed=0, date="2026-12-01T00:00:00+00:00")))
    assert "0 are better and 0 are worse" in text and "cannot tell (the rounds are equal)" in text
    assert "2026-11-30" in text and "2026-12-01" in text


def test_other_numbers_of_images_and_rounds_are_the_same_measure_and_other_sizes_are_not():
    def with_setting(**setting: Any) -> Result:
        return of(measure("m", "M", [Maker().case({"fastft": 1})], setting=setting))

    assert compare([with_setting(size=224, images=700), with_setting(size=224, images=50_000)])
    with pytest.raises(UserError, match="no measure in common"):
        compare([with_setting(size=224), with_setting(size=384)])


# the command ----------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_page_beside_the_result(tmp_path, capsys):
    one = tmp_path / "all.json"
    write_result(one, result())
    assert main(["report", str(one)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'all.html'}\n"
    assert MADE_UP in (tmp_path / "all.html").read_text()
    write_result(tmp_path / "other.json", result(cpu="another"))
    assert main(["report", str(one), str(tmp_path / "other.json")]) == 0
    assert "Benchmarks compared" in (tmp_path / "comparison.html").read_text()
    assert main(["report", str(one), "--out", str(tmp_path / "mine.html")]) == 0
    assert (tmp_path / "mine.html").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "no JSON",
        '{"measures": NaN}',
        '{"format": 2, "measures": []}',
        '{"format": 1, "measures": []}',
        '{"measures": [{"name": "old"}]}',
        "[" * 100_000,
        '{"measures": ' + "9" * 5000 + "}",
        "\ud800",
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, refused, text):
    path = tmp_path / "bench.json"
    path.write_text(text, errors="surrogatepass")
    assert "bench" in refused(["report", str(path)])
    assert [p.name for p in tmp_path.iterdir()] == ["bench.json"]


def test_a_result_with_one_wrong_value_is_refused_or_drawn(tmp_path, refused):
    path = tmp_path / "bench.json"
    written = msgspec.to_builtins(result())
    written["sessions"] = []
    path.write_text(json.dumps(written))
    refused(["report", str(path)])


@pytest.mark.parametrize(
    "more", [["--price", "2"], ["--mistakes", "never"], ["--weights", "raw"], ["runs/one"], ["missing.json"]]
)
def test_what_does_not_fit_a_benchmark_is_refused(tmp_path, refused, more):
    path = tmp_path / "bench.json"
    write_result(path, result())
    refused(["report", str(path), *more])
    assert not path.with_suffix(".html").exists()


def replaced(value: Any, choose: Any, junk: Any) -> Any:
    """The value with one thing in it replaced, found by going down at random."""
    if isinstance(value, dict) and value:
        key = choose(sorted(value))
        return {**value, key: replaced(value[key], choose, junk)}
    if isinstance(value, list) and value:
        k = choose(range(len(value)))
        return [*value[:k], replaced(value[k], choose, junk), *value[k + 1 :]]
    return junk


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8), st.just([]), st.just({}),
    st.sampled_from([1e30, -1e30, 1e-320, 10**25, 0, -1]),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_result_with_one_strange_value_is_drawn_or_refused(tmp_path_factory: pytest.TempPathFactory, data):
    folder: Path = tmp_path_factory.mktemp("strange")
    written = msgspec.to_builtins(result(gpu=GPU))
    strange = replaced(written, lambda options: data.draw(st.sampled_from(list(options))), data.draw(JUNK))
    path, page = folder / "bench.json", folder / "bench.html"
    path.write_text(json.dumps(strange))
    try:
        one = read_result(path)
    except UserError as error:
        assert "\n" not in str(error)
        return
    write_bench_page([one], page)
    write_bench_page([one, one], page)
    assert page.read_text().endswith("</html>")


def test_perfect_scaling_ends_at_the_last_core():
    make = made_up.Maker()
    cases = [make.case({"fastft": 100 * t, "timm": 10 * t}, threads=t) for t in (1, 16, 32)]
    measured = made_up.measure("loader.recipe", "Loader", cases, "images/s")
    chart = line_chart(measured, "threads", "", cases, {"fastft": "accent", "timm": "peer-1"}, cores=16)
    lines = {s.name: list(s.x) for s in chart.series}
    assert lines == {"fastft": [1, 16, 32], "timm": [1, 16, 32], "fastft, perfect scaling": [1, 16]}
