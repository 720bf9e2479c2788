"""`model.image_size=auto`: linear probes choose the size of a new run; everything after it takes the size as given."""

from pathlib import Path

import numpy as np
import pytest

from fastft.choose import choose, image_size
from fastft.choose.automatic import probes_sizes, resolve
from fastft.evaluate import linear_probe
from fastft.evaluate.linear_probe import LinearProbe
from fastft.evaluate.predictor import Predictor
from fastft.evaluate.ridge import RidgeHead
from fastft.jobs.sweep import run_key
from fastft.machine.exits import Preempted
from fastft.machine.preempt import SignalGuard
from fastft.photos.prepare import LEAST_LONG_SIDE, _options
from fastft.recipe import load_recipe
from fastft.recipe.constants import PROBED_SIZES
from fastft.run.run_directory import read_choices
from tests.train.runs import differing, end, flags, result_of, rewind, run
from tests.train.test_distributed import launch, said_by

AUTO = {"model__image_size": "auto", "model__head_init": "probe", "train__keep_checkpoints": "100"}


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch):
    monkeypatch.setattr(image_size, "PROBED_SIZES", (16, 24, 40))


def probe(losses: np.ndarray, size: int = 16, seconds: float = 1.0) -> LinearProbe:
    head = RidgeHead(np.zeros((2, 1)), np.zeros(2), 1.0, 1.0, losses, losses < 0.5)
    return LinearProbe(size, len(losses), head, None, seconds)


@pytest.mark.parametrize(
    ("losses", "seconds", "chosen", "why"),
    [
        ([1.0, 0.5, 0.2], 1, 40, "No larger size is tried"),
        ([1.0, 0.5, 0.51], 1, 24, "At 40 px the loss is not lower by more than the standard error"),
        ([1.0, 1.0, 0.2], 1, 16, "At 24 px the loss is not lower by more than the standard error"),
        ([1.0, 0.5, 0.2], 3600 / 3 / 3 / 4, 24, "Training at 40 px would take about 1 h"),
    ],
)
def test_larger_sizes_are_tried_as_long_as_they_gain_and_an_hour_is_enough(
    tiny, tmp_path, losses, seconds, chosen, why
):
    noise = np.random.default_rng(0).normal(0, 0.1, 100)
    found = {size: probe(loss + noise * k, size, seconds * (size / 16) ** 2)
             for k, (size, loss) in enumerate(zip((16, 24, 40), losses, strict=True))}  # fmt: skip
    recipe = load_recipe("rcp/final_b16.yaml", flags(tiny, tmp_path, model__image_size="auto"))
    recipe, taken = image_size.choose_image_size(recipe, lambda r: found[r.model.image_size])
    assert recipe.model.image_size == taken.size == chosen
    choice = recipe.choices[-1]
    assert why in choice.reason and choice.evidence[0]["size"] == 16


def test_a_run_takes_size_and_head_of_its_best_probe_and_resumes_with_them(tiny, tmp_path, monkeypatch):
    run(tiny, tmp_path / "auto", **AUTO)
    choice = (read_choices(tmp_path / "auto") or {})["model.image_size"]
    assert choice.value in (16, 24, 40) and "16 px" in choice.reason
    photo = next((Path(tiny["data.val"]).parent / "val").rglob("*.jpg"))
    predictor = Predictor(tmp_path / "auto", device="cpu")
    assert predictor.trained.recipe.model.image_size == predictor.trained.model.visual.arch.image_size == choice.value
    assert next(predictor.predict(photo)).error is None

    run(tiny, tmp_path / "given", **AUTO | {"model__image_size": str(choice.value)})
    assert differing(end(tmp_path / "auto"), end(tmp_path / "given")) == []

    monkeypatch.setattr(choose, "choose_image_size", None)
    rewind(tmp_path / "auto", 5)
    run(tiny, tmp_path / "auto", **AUTO)
    assert differing(end(tmp_path / "auto"), end(tmp_path / "given")) == []
    assert result_of(tmp_path / "auto")["baseline"]["raw"] == result_of(tmp_path / "given")["baseline"]["raw"]


@pytest.mark.slow
def test_two_processes_choose_the_size_that_one_does(tiny, tmp_path, monkeypatch):
    monkeypatch.undo()  # sizes of 56 pixels and more, as the processes have them
    command = flags(tiny, tmp_path / "two", train__micro_batch="2", schedule__stop_epoch="1", **AUTO)
    said_by(launch("train", "rcp/final_b16.yaml", *command))
    run(tiny, tmp_path / "one", schedule__stop_epoch="1", **AUTO)
    choices = [(read_choices(tmp_path / name) or {})["model.image_size"] for name in ("one", "two")]
    assert choices[0].value == choices[1].value
    assert (
        result_of(tmp_path / "one")["baseline"]["raw"]["top1"] == result_of(tmp_path / "two")["baseline"]["raw"]["top1"]
    )


def test_the_features_of_the_chosen_size_are_computed_once(tiny, tmp_path, monkeypatch):
    probed: list[int] = []
    whole = linear_probe.pooled_features

    def counted(model, *arguments):
        probed.append(model.visual.arch.image_size)
        return whole(model, *arguments)

    monkeypatch.setattr(linear_probe, "pooled_features", counted)
    run(tiny, tmp_path, schedule__stop_epoch="1", **AUTO)
    assert len(probed) == len(set(probed)) >= 2 and result_of(tmp_path)["baseline"]["images"] == 48
    assert not (tmp_path / linear_probe.FEATURES).exists()


def test_a_signal_during_the_probes_ends_the_run_without_a_trace(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(SignalGuard, "is_stop_requested", lambda self: True)
    with pytest.raises(Preempted, match=r"before the first step\. The same command continues"):
        run(tiny, tmp_path / "run", **AUTO)
    assert not (tmp_path / "run").exists()


def test_without_a_probe_or_with_many_images_the_size_is_the_papers(tmp_path):
    recipe = resolve(load_recipe("photos", ["--model.image_size=auto", "--data.train_size=500"]))
    reason = next(c.reason for c in recipe.choices if c.option == "model.image_size")
    assert recipe.model.image_size == 224 and "linear probes compare sizes from 56 to 336 px" in reason
    for more in ("--data.train_size=20000", "--model.head_init=small"):
        recipe = resolve(load_recipe("photos", ["--model.image_size=auto", "--data.train_size=500", more]))
        assert recipe.model.image_size == 224 and not probes_sizes(recipe)


def test_a_sweep_has_another_folder_for_a_size_that_is_chosen():
    chosen, given = (
        resolve(load_recipe("photos", ["--data.train_size=500", *more])) for more in (["--model.image_size=auto"], [])
    )
    assert chosen.model == given.model and run_key(chosen) != run_key(given)


def test_photographs_are_stored_for_the_largest_size_that_may_be_chosen():
    sides = {
        size: _options(load_recipe("photos", [f"--model.image_size={size}"])).max_resolution for size in ("auto", 224)
    }
    assert sides == {"auto": 2 * PROBED_SIZES[-1], 224: LEAST_LONG_SIDE}
