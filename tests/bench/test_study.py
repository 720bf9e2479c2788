"""The study: what it trains, which differences it calls real, and its page, which nobody typed."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from tests.benchmark_modules import import_benchmark

ROOT = Path(__file__).parents[2]
N = 400  # test images of the made-up scores


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return import_benchmark("study")


@pytest.fixture(scope="module")
def report(study: ModuleType) -> ModuleType:
    return sys.modules["study_report"]


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, np.ndarray]) -> Path:
    """A folder like CIFAR-10's: 40 training and 6 test images of two classes, 32 px."""
    folder = tmp_path_factory.mktemp("cifar")
    for split, count, row in (("train", 40, 0), ("test", 6, 200)):
        for name in ("coffee", "rocket"):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                part = photographs[name][row + 8 * i : row + 8 * i + 32, 8 * i : 8 * i + 32]
                Image.fromarray(part).save(folder / split / name / f"{split}{i}.png")
    return folder


def prepared(study: ModuleType, cifar: Path, folder: Path, train: int = 12):
    setting = {"train_per_class": train, "tune_per_class": 4, "test_per_class": 6}
    made = study.Study(folder, folder, setting, study.ScoredRuns(folder / "study_runs.jsonl"))
    made.prepare(cifar)
    return made


def images_of(folder: Path, split: str) -> set[bytes]:
    return {path.read_bytes() for path in (folder / "images" / split).rglob("*.jpg")}


def test_tune_images_come_from_the_training_file_and_no_run_trains_on_them(
    study, cifar: Path, tmp_path: Path
) -> None:
    prepared(study, cifar, tmp_path)
    train, tune, test = (images_of(tmp_path, split) for split in ("train", "tune", "test"))
    assert (len(train), len(tune), len(test)) == (24, 8, 12)
    assert train.isdisjoint(tune) and (train | tune).isdisjoint(test)
    source = {path.read_bytes() for path in (cifar / "train").rglob("*.png")}
    assert train | tune <= source


def test_a_folder_of_another_study_is_refused(study, cifar: Path, tmp_path: Path) -> None:
    prepared(study, cifar, tmp_path)
    with pytest.raises(SystemExit, match="other settings"):
        prepared(study, cifar, tmp_path, train=10)


def test_rows_change_what_they_say_and_nothing_else(study) -> None:
    base = study.grid_rows()[0].options
    rows = {row.name: row for row in (*study.lever_rows(base), *study.chain_rows(base), *study.plain_rows())}
    for row in rows.values():
        if row.part == "lever":
            assert row.epochs == study.EPOCHS and {key: row.options[key] for key in base} == base
    assert set(rows["freeze 1/2"].options) - set(base) == {"model.trainable_layers"}
    assert rows["half length"].options == rows["layer decay"].options == {**base, **study.MIX}
    assert rows["layer decay"].epochs == 2 * rows["half length"].epochs
    assert all(rows[f"no decay, lr {lr:g}"].raw for lr in study.PLAIN_LRS)


def test_every_row_is_a_valid_recipe_and_its_flops_are_those_of_its_levers(
    study, cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "fetch", lambda *_: None)
    monkeypatch.setattr(study, "write_backbone", lambda *_: tmp_path / "weights.safetensors")
    made, base = prepared(study, cifar, tmp_path, train=32), study.grid_rows()[0]
    flops = {}
    for row in (base, *study.lever_rows(base.options), *study.chain_rows(base.options), *study.plain_rows()):
        recipe = made.recipe(row, 1, tmp_path / "run", study._epochs(row))
        assert (recipe.data.num_classes, recipe.data.train_size, recipe.train.seed) == (2, 64, 1)
        flops[row.name] = study.recipe_work(recipe, study.recipe_arch(recipe)).train
    cheap = flops["stop, freeze 1/2, drop 1/2, last 4 epochs whole"]
    assert cheap == min(flops.values()) < 0.4 * flops[base.name]
    assert flops["freeze 3/4"] < flops["freeze 1/2"] < flops["freeze 1/4"] < flops[base.name]


def test_all_rows_of_one_seed_come_before_the_next_and_the_base_is_chosen_once(study) -> None:
    """The second row of the grid has the most right tune images; other seeds train nothing else of the grid."""

    class Scores:
        def score(self, row, seed):
            right = _hex(np.arange(8) < (3 if row.name == second.name else 2))
            return {"row": row.name, "options": row.options, "points": [{"tune_ema": right}]}

    first, second, third = study.grid_rows()
    planned = [(row.name, seed) for row, seed in study.plan(Scores(), [0, 1])]
    assert planned[:4] == [(row.name, 0) for row in (first, second, third, second)]
    seeds = [seed for _, seed in planned]
    assert seeds == sorted(seeds)
    by_seed = [{name for name, seed in planned if seed == wanted} for wanted in (0, 1)]
    assert by_seed[0] - by_seed[1] == {first.name, third.name, study.long_row({}).name}
    assert {row.name for row in study.plain_rows()} < by_seed[1] < by_seed[0]


def test_of_equal_trainings_the_smallest_lr_is_chosen_by_study_and_page_alike(study, report) -> None:
    """Ties are broken by the learning rate. Trainings that always predict one class have equal counts."""

    class Scores:
        def score(self, row, seed):
            return {"row": row.name, "options": row.options, "points": [{"tune_ema": _hex(np.arange(8) < 4)}]}

    grid = study.grid_rows()
    trained = {row.name for row, seed in study.plan(Scores(), [0, 1]) if seed == 1}
    runs = [Scores().score(row, 0) | {"part": "grid", "seed": 0} for row in reversed(grid)]
    chosen = report.tuned(runs, "grid", [row.name for row in grid], "ema")
    assert chosen == min(grid, key=lambda row: row.options["optim.lr"]).name
    assert trained & {row.name for row in grid} == {chosen}


def test_a_second_process_waits_for_the_choice_of_the_base(study, tmp_path: Path) -> None:
    scores = study.ScoredRuns(tmp_path / "study_runs.jsonl")
    scores.begin({})
    with pytest.raises(SystemExit, match="seed 0"):
        next(study.plan(study.Study(tmp_path, tmp_path, {}, scores), [1]))


def test_a_finished_training_is_found_in_the_results_of_another_machine(
    study, cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same setting nothing is trained again; with other options or another setting it is not taken."""
    made, row = prepared(study, cifar, tmp_path / "here"), study.grid_rows()[0]
    made.scores.add({"row": row.name, "seed": 0, "options": study._json(row.options), "points": [1]})
    (tmp_path / "there").mkdir()
    results = tmp_path / "there" / "study_runs.jsonl"
    results.write_bytes(made.scores.path.read_bytes())
    trained: list[str] = []
    monkeypatch.setattr(study.Study, "_score_after", lambda self, row, *_: trained.append(row.name) or {})
    there = prepared(study, cifar, tmp_path / "there")
    assert there.score(row, 0)["points"] == [1] and not trained
    other = study.Row(row.name, "grid", {**row.options, "optim.lr": 5e-4})
    assert there.score(other, 0)["points"] == [{}] and trained == [row.name]
    with pytest.raises(SystemExit, match="has the setting"):
        study.ScoredRuns(results).begin({"epochs": 1})


# figures ---------------------------------------------------------------------------------------------------------------


def hits(share: float, seed: int) -> np.ndarray:
    """The first of N images are right, but for a few that differ between seeds."""
    right = np.arange(N) < share * N
    right[np.random.default_rng(seed).choice(N, 4)] ^= True
    return right


def test_a_difference_is_paired_by_seed_and_by_image(report) -> None:
    row = report.Figure("row", 1.0, {0: hits(0.8, 0), 1: hits(0.82, 1), 2: hits(0.81, 2)})
    base = report.Figure("base", 2.0, {0: hits(0.7, 3), 1: hits(0.72, 4), 5: hits(0.1, 5)})
    found = report.difference(row, base)
    per_seed = [100 * (row.hits[s].mean() - base.hits[s].mean()) for s in (0, 1)]
    assert (found.seeds, found.flops) == (2, 0.5)
    assert found.gain == pytest.approx(np.mean(per_seed))
    assert found.seed_error == pytest.approx(np.std(per_seed, ddof=1) / 2**0.5)
    unpaired = 100 * np.sqrt((row.hits[0].var() + base.hits[0].var()) / N)
    assert 0 < found.image_error < unpaired  # both rows name the same images, mostly
    assert report.difference(row, report.Figure("x", 1.0, {7: hits(0.5, 0)})) is None


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ([0.75], "one seed"),
        ([0.75, 0.75, 0.76], "better"),
        ([0.65, 0.64, 0.65], "worse"),
        ([0.75, 0.62, 0.73], "not told apart"),
    ],
)
def test_a_difference_is_told_apart_only_over_seeds(report, shares: list[float], verdict: str) -> None:
    row = report.Figure("row", 1.0, {s: np.arange(N) < share * N for s, share in enumerate(shares)})
    base = report.Figure("base", 1.0, {s: np.arange(N) < 0.7 * N for s in range(len(shares))})
    assert report.difference(row, base).verdict == verdict


def test_the_pareto_front_has_what_nothing_beats(report) -> None:
    rows = [
        report.Figure(name, flops, {0: np.arange(100) < right})
        for name, flops, right in (("a", 1, 50), ("b", 2, 60), ("c", 2, 55), ("d", 3, 60), ("e", 4, 61))
    ]
    assert report.pareto(rows) == ["a", "b", "e"]


def scored(study, scores, rows, seeds: int) -> None:
    """Scores as finished trainings leave them."""
    for place, row in enumerate(rows):
        for seed in range(seeds):
            points = []
            for epochs in sorted({*row.also_at, study._epochs(row)}):
                right = {
                    f"{s}_{w}": _hex(hits(0.7 - 0.01 * place, seed))
                    for s in ("tune", "test")
                    for w in ("ema", "raw")
                }
                points.append(
                    {"epochs": epochs, "flops": 1e12 * epochs, "train_seconds": 9, "score_seconds": 1} | right
                )
            scores.add({
                "row": row.name, "part": row.part, "seed": seed, "options": study._json(row.options), "images": N,
                "points": points,
            })  # fmt: skip


def _hex(right: np.ndarray) -> str:
    return np.packbits(right).tobytes().hex()


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_page_opens_with_three_sentences_and_says_how_much_is_there(
    study, report, cifar: Path, tmp_path: Path, seeds: int
) -> None:
    scores = prepared(study, cifar, tmp_path).scores
    base, *_ = study.grid_rows()
    rows = [base, *study.lever_rows(base.options)[:2], *study.chain_rows(base.options), *study.plain_rows()]
    scored(study, scores, rows, seeds)
    scored(study, scores, [study.long_row(base.options)], 1)
    study.main(["report", "--out", str(tmp_path), "--docs", str(tmp_path / "docs")])
    page = (tmp_path / "docs" / "study.md").read_text()
    opening = page.split("\n\n")[1]
    assert opening.count(". ") == 2 and opening.endswith(".")
    assert ("too few to say" in opening) == (seeds == 1)
    found = json.loads((tmp_path / "study.json").read_text())
    assert [d["name"] for d in found["chain"]] == [
        "smaller lr",
        "EMA",
        "layer decay",
        "half the length",
        "no mixing",
    ]
    assert {d["seeds"] for d in found["chain"] + found["levers"]} == {seeds}
    assert {len(f["by_seed"]) for f in found["figures"]} == {seeds} and found["twice_the_length"][
        "seeds"
    ] == 1
    assert "Twice the length changes it by" in page
    for theme in ("light", "dark"):
        svg = (tmp_path / "docs" / "images" / f"study-{theme}.svg").read_text()
        assert all(f": {name}<" in svg for name in found["pareto"]) and "Pareto front" in svg


def test_a_row_at_chance_is_named_and_in_no_step(study, report, cifar: Path, tmp_path: Path) -> None:
    scores = prepared(study, cifar, tmp_path).scores
    base, *_ = study.grid_rows()
    first, second = study.plain_rows()
    scored(study, scores, [base, *study.chain_rows(base.options), second], 3)
    setting, guessing = scores.setting(), _hex(np.arange(N) < N * scores.setting()["test_per_class"] // N)
    for seed in range(3):
        right = {f"{s}_{w}": guessing for s in ("tune", "test") for w in ("ema", "raw")}
        point = {"epochs": 40, "flops": 4e13, "train_seconds": 9, "score_seconds": 1} | right
        scores.add({
            "row": first.name, "part": "chain", "seed": seed, "options": study._json(first.options), "images": N,
            "points": [point],
        })  # fmt: skip
    found = report.collect(scores)
    assert setting["test_per_class"] == 6 and found["untrained"] == ["baseline"]
    assert [d["name"] for d in found["chain"]] == ["EMA", "layer decay", "half the length", "no mixing"]
    assert found["chain"][0]["against"] == "smaller lr"
    assert "'baseline' ended near chance and are in no step" in report.page(found)


def difference(report, name: str, gain: float, half_width: float | None) -> dict:
    made = {
        "name": name,
        "against": "base",
        "gain": gain,
        "flops": 0.5,
        "seed_error": 0.1,
        "image_error": 0.1,
        "seeds": 3,
    }
    told = half_width is not None and abs(gain) > half_width
    return made | {"half_width": half_width, "verdict": "worse" if told else "not told apart"}


def test_free_means_shown_to_lose_less_than_half_a_point(report) -> None:
    levers = [
        difference(report, "a", -0.1, 0.3),
        difference(report, "b", -0.1, 0.5),
        difference(report, "c", 0.1, None),
    ]
    text = report._free_sentence(levers)
    assert "'a'" in text.split(";")[0] and "'b'" not in text.split(";")[0] and "'c'" not in text.split(";")[0]


def test_published_numbers_outside_the_interval_are_named(report) -> None:
    chain = [difference(report, "half the length", -5.4, 1.0), difference(report, "EMA", 0.5, 1.0)]
    setting = {"steps": 620, "batch": 32}
    text = report._against_the_papers({"levers": [], "chain": chain, "setting": setting})
    assert "figures here, 1 of 2: " in text and "'half the length' -5.4" in text and "'EMA'" not in text


def test_the_page_in_the_repository_is_made_of_the_results(report) -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "study.json").read_text())
    assert (ROOT / "docs" / "study.md").read_text() == report.page(found)
