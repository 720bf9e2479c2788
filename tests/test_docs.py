"""The documentation: dead links are errors, references list what there is; the layout that CONTRIBUTING.md describes."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Set
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from torch.nn.functional import cross_entropy

from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.cli import COMMANDS, CONVERT_KINDS, build_parser, main
from fastft.cost.price import CostQuery, price_recipes
from fastft.jobs.demo import CONTENDERS
from fastft.machine.bench_result import read_result, write_result
from fastft.machine.gpus import GPUS, MAIN_GPUS
from fastft.recipe import load_recipe
from fastft.recipe.tables import load_sweep
from fastft.recipe.yaml_file import read_yaml
from fastft.run.metrics_lines import Start, read_lines
from tests.bench import made_up

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
SCHEMA = (ROOT / "docs/bench-schema.md").read_text()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A copy of what `make docs` reads."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    return tmp_path


def make_docs(site: Path) -> subprocess.CompletedProcess[str]:
    """The Makefile's own command."""
    line = re.search(r"^\t(NO_MKDOCS.*)$", (ROOT / "Makefile").read_text(), re.M)
    command = line[1].replace("$(BIN)", shlex.quote(str(Path(sys.executable).parent)))
    return subprocess.run(command, shell=True, cwd=site, capture_output=True, text=True)


@pytest.mark.slow  # make docs builds the pages in CI
def test_dead_links_and_a_page_outside_the_navigation_are_errors(site):
    wrong = {"a file](../rcp/no.yaml)": "'../rcp/no.yaml'", "a heading](faq.md#no)": "not contain an anchor '#no'"}
    (site / "docs" / "lost.md").write_text("# A page\n")
    with (site / "docs" / "index.md").open("a") as file:
        file.write("".join(f"\n[{link}\n" for link in wrong))
    done = make_docs(site)
    assert done.returncode != 0
    assert all(warning in done.stderr for warning in (*wrong.values(), 'not included in the "nav"'))


@pytest.mark.parametrize(
    ("text", "correction"),
    [("recieve", "receive"), ("normalized colors", "colours"), ("an optimizer of torch on a disk", "")],
)
def test_misspelt_and_american_words_are_errors(tmp_path, text, correction):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text(f"{text}\n")
    command = [sys.executable, str(ROOT / "docs/spelling.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == (1 if correction else 0), done.stderr
    assert correction in done.stdout


def row(begin: str) -> str:
    return next(line for line in SCHEMA.splitlines() if line.startswith(begin))


def test_every_unit_of_the_results_is_documented():
    units = {
        m.unit
        for path in RESULTS.glob("*.json")
        if b"sessions" in path.read_bytes()
        for m in read_result(path).measures
    }
    assert units and units <= set(re.findall(r"`([^`]+)`", row("| `.unit`")))


def test_every_kind_of_line_in_metrics_is_documented():
    code = "".join(path.read_text() for room in ("train", "run") for path in (ROOT / "fastft" / room).glob("*.py"))
    kinds = set(re.findall(r"\.record\(\s*\"(\w+)\"", code))
    assert "checkpoint" in kinds and kinds == set(
        re.findall(r"^\| `(\w+)` \| `", SCHEMA[SCHEMA.index("A run's `metrics.jsonl`") :], re.M)
    )


def test_every_key_of_a_cost_estimate_is_documented():
    priced = price_recipes([load_recipe(ROOT / "rcp/final_b16.yaml")], CostQuery("V100"))
    text = SCHEMA[SCHEMA.index("`fastft cost --json`") : SCHEMA.index("A run's `metrics.jsonl`")]
    assert set(priced.recipes[0].estimates[0].__struct_fields__) <= set(re.findall(r"`(\w+)`", text))


def described(begin: str, end: str) -> set[str]:
    """Names in a part of the page."""
    text = SCHEMA[SCHEMA.index(begin) : SCHEMA.index(end)]
    return set(re.findall(r"[`{\s,](\w+)(?=[`},])", text))


def keys(values: object, skipped: Set[str]) -> set[str]:
    """Return the keys of a JSON document, without those below `skipped`, and without the names of GPUs."""
    if isinstance(values, list):
        return set().union(*(keys(value, skipped) for value in values))
    if not isinstance(values, dict):
        return set()
    below = (keys(value, skipped) for key, value in values.items() if key not in skipped)
    return {key for key in values if key not in GPUS}.union(*below)


@pytest.mark.parametrize(
    ("command", "begin", "end"),
    [
        ("explain final_b16 --json", "`fastft explain --json`", "A run's `metrics.jsonl`"),
        ("explain photos --data=train.beton --schedule.budget=5m --json", "`fastft explain --json`", "A run's `metrics.jsonl`"),
        ("cost final_b16 --json", "`fastft cost --json`", "`fastft explain --json`"),
        ("cost 05_llrd --gpu=v100 --price=2 --json", "`fastft cost --json`", "`fastft explain --json`"),
    ],
)  # fmt: skip
def test_every_key_that_commands_print_is_documented(command, begin, end, place, capsys):
    assert main(command.split()) == 0
    printed = json.loads(capsys.readouterr().out)
    assert keys(printed, {"recipe", "evidence"}) <= described(begin, end)
    if command.startswith("cost"):
        of_gpu = re.search(r"An object is `{(.*)}`", SCHEMA)[1].split(", ")
        assert list(printed) == of_gpu if "--gpu" in command else set(printed) == set(MAIN_GPUS)


def test_every_key_of_a_runs_files_is_documented(whole):
    lines = read_lines(whole / "metrics.jsonl")
    for kind in {str(line["kind"]) for line in lines}:
        found = {key for line in lines if line["kind"] == kind for key in keys(line, {"split"})}
        plain = {re.sub(r"^(selection_)?(raw|ema)_", "", key) for key in found}
        names = set(re.findall(r"`(\w+)`", row(f"| `{kind}` | `")))
        assert plain - {"kind", "time", "step"} <= names, kind
    (start,) = (line for line in lines if line["kind"] == "start")
    assert set(Start.__struct_fields__) <= set(start)
    weights = json.loads((whole / "result.json").read_text())["weights"]
    assert keys(weights, set()) <= set(re.findall(r"`(\w+)`", SCHEMA[SCHEMA.index("A run's `result.json`") :]))


MODULES = [path for package in ("fastft", "beton_tools") for path in (ROOT / package).rglob("*.py")]


def test_no_file_name_appears_twice_in_the_packages():
    count = Counter(path.name for path in MODULES if path.name not in ("__init__.py", "__main__.py"))
    assert len(count) > 100
    assert [name for name, times in count.items() if times > 1] == []


def test_every_folder_is_described_in_contributing():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in MODULES if path.parent.parent == ROOT / "fastft"}
    assert [name for name in sorted(folders) if f"{name}/" not in text] == []


@pytest.mark.parametrize("page", [*(ROOT / "docs").rglob("*.md")], ids=lambda page: page.stem)
def test_definitions_have_lines_of_their_own(page):
    """Otherwise the site shows the term and `:` as text."""
    assert [line for line in page.read_text().splitlines() if re.search(r"\S :   ", line)] == []


# code ------------------------------------------------------------------------------------------------------------------

BLOCK = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.S | re.M)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [(page, language, text) for page in PAGES for language, text in BLOCK.findall(page.read_text())]
OTHERS = ("ffcv.", "lightly_train.")  # FFCV compiles for half a minute: a slow test; lightly-train is not installed
# a small model in the place of a large one, few images in the place of many
SMALLER = {
    '"timm/vit_small_patch14_dinov2.lvd142m"': "ARCH",
    'weights="timm"': 'weights="random", image_size=32, epochs=2, quiet=True, options={"train.amp": "fp32"}',
    "batch_size=256": "batch_size=8", "batch_size=64": "batch_size=8", '"train.beton", 256': '"train.beton", 8',
    'export("timm", "pics_timm")': 'export("safetensors", "pics.safetensors")',
}  # fmt: skip


def python_blocks(wanted: bool) -> list[str]:
    """Blocks that need none of OTHERS, or those that need FFCV."""
    found = [text for _, language, text in BLOCKS if language == "python" and "lightly_train" not in text]
    return [text for text in found if any(name in text for name in OTHERS) != wanted]


@pytest.fixture
def place(tiny, tmp_path, monkeypatch):
    """The current folder, with the files that pages name."""
    photos = Path(tiny["data.train"]).parent
    for name, target in (("pics", "train"), ("more_pics", "val"), ("holiday", "val/coffee")):
        (tmp_path / name).symlink_to(photos / target)
    convert_folder(photos / "train", tmp_path / "train.beton", WriteOptions(workers=0))
    monkeypatch.chdir(tmp_path)


def execute(text: str, tiny: dict[str, str]) -> dict[str, Any]:
    for large, small in SMALLER.items():
        text = text.replace(large, small)
    names = {"ARCH": tiny["model.arch"], "model": lambda images: images.mean((2, 3)), "criterion": cross_entropy}
    exec(text, names)
    return names


@pytest.mark.parametrize("text", python_blocks(True))
def test_python_in_the_pages_runs(text, place, tiny):
    execute(text, tiny)


@pytest.mark.slow
@pytest.mark.parametrize("text", python_blocks(False))
def test_ffcvs_loader_in_the_pages_runs(text, place, tiny):
    for images, labels in execute(text, tiny).get("loader", ()):
        assert images.shape == (8, 3, 224, 224) and labels.shape == (8,)


@pytest.mark.parametrize("text", [text for _, language, text in BLOCKS if language == "yaml"])
def test_recipes_and_tables_in_the_pages_are_valid(text, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("../final_b16", "final_b16"))
    if "rows:" in text:
        assert len(load_sweep(path).rows) == text.count("label:")
    else:
        assert load_recipe("final_b16") != load_recipe(path) if "extends" in text else read_yaml(path, "options")


def help_examples() -> list[str]:
    places = [place for place, _ in (*COMMANDS.values(), *CONVERT_KINDS.values()) if place]
    modules = [place.partition(".") for place in places]
    commands = [import_module(f"fastft.cli.{module}") for module, _, _ in modules]
    found = [getattr(getattr(c, name, c), "EXAMPLE", "") for c, (_, _, name) in zip(commands, modules, strict=True)]
    return [line.strip() for text in found for line in text.splitlines()]


def test_examples_in_help_texts_name_runs_that_the_demo_makes():
    names = {f"runs/demo/{training.name}" for training in CONTENDERS}
    found = [
        word
        for line in help_examples()
        for word in line.split()
        if word.startswith("runs/demo") and "--out" not in line
    ]
    assert found and set(found) <= names


def commands() -> dict[str, str]:
    """Command lines of fastft -> their page; also those that help texts give as examples."""
    found = {}
    for page, _, text in BLOCKS:
        for line in text.replace("\\\n", "").splitlines():
            words = line.partition(" #")[0].replace("!fastft", "fastft").strip()
            if words.startswith("fastft ") and " ... " not in words:
                found[words] = page.name
    return found | dict.fromkeys(help_examples(), "--help")


@pytest.mark.parametrize("line", commands())
def test_commands_in_the_pages_are_those_of_the_program(line, tmp_path, monkeypatch):
    words = shlex.split(line)[1:]
    if "--help" in words:
        return
    args, rest = build_parser(words).parse_known_args(words)
    recipe = getattr(args, "recipe", None) or "mine.yaml"
    assert rest == []
    if not recipe.startswith(("mine", "runs/")):
        load_recipe(recipe, getattr(args, "overrides", ()))
    if getattr(args, "measured", None):  # the reader's own result
        monkeypatch.chdir(tmp_path)
        args.measured.parent.mkdir()
        write_result(args.measured, made_up.result())
    if args.command in ("cost", "options") or (args.command == "explain" and recipe != "mine.yaml"):
        assert main(words) == 0
