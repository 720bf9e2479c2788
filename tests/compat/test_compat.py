"""Files that an older version wrote are read and continued: `.beton`, conversions, checkpoints, run directories.

`write_fixture.py` in this folder wrote the archives; it is in the repository's history up to commit 914119f.
"""

import json
import tarfile
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from beton_tools.inspect.verify import verify
from beton_tools.read.format import Beton
from beton_tools.read.manifest import Manifest, manifest_path
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.cli import main
from fastft.evaluate.trained import load_trained
from fastft.machine.distributed import World
from fastft.recipe import load_recipe
from fastft.run.run_directory import load_run, read_metrics
from fastft.train.checkpointing import step_tensors
from fastft.train.preempt import SignalGuard
from fastft.train.setup import build_setup
from tests.train.runs import differing, end, losses

ARCHIVES = sorted(Path(__file__).parent.glob("written_by_*.tar.xz"))
# of fp32: another CPU, another torch, or a faster order of the same operations
ROUNDING = 1e-5


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.split(".")[0])
def old(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive's files; the current folder, as their paths are relative."""
    with tarfile.open(request.param) as tar:
        tar.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_checkpoint_of_before_is_restored_bit_for_bit(old):
    path = old / "run" / "checkpoints" / "step-00000006"
    recipe = load_recipe("recipe.yaml", ["--train.run_dir=run"])
    with ExitStack() as opened:
        setup = build_setup(recipe, World(0, 1, 0, torch.device("cpu")), SignalGuard(), opened)
        for stem, restored in step_tensors(setup.step).items():
            stored = load_file(path / f"{stem}.safetensors")
            assert differing(restored, stored) == []
        progress = setup.progress
        assert (progress.epoch, progress.step, setup.position(progress)) == (1, 2, 6)
        assert progress.evaluations == json.loads((path / "state.json").read_text())["progress"]["evaluations"]


def test_a_killed_run_of_before_ends_with_the_weights_of_the_uninterrupted_one(old):
    assert main(["train", "recipe.yaml", "--train.run_dir=run"]) == 0
    now, then = end(old / "run"), end(old / "whole")
    assert now.keys() == then.keys()
    for name, tensor in now.items():
        torch.testing.assert_close(tensor, then[name], rtol=0, atol=ROUNDING)
    steps, values = zip(*losses(old / "run"), strict=True)
    assert steps == tuple(range(1, 13))
    assert values == pytest.approx([loss for _, loss in losses(old / "whole")], abs=ROUNDING)


def test_a_finished_run_of_before_is_not_trained_again(old):
    before = read_metrics(old / "whole" / "metrics.jsonl")
    assert main(["train", "recipe.yaml", "--train.run_dir=whole"]) == 0
    after = read_metrics(old / "whole" / "metrics.jsonl")
    trained = ("train", "eval", "checkpoint", "split")
    assert [m for m in after if m["kind"] in trained] == [m for m in before if m["kind"] in trained]


def test_a_beton_of_before_is_whole_and_has_its_manifest(old):
    manifest = Manifest.of_beton(old / "data.beton")
    assert manifest is not None and manifest.classes == ["astronaut", "coffee"]
    assert Beton.open(old / "data.beton").labels.tolist() == [0] * 8 + [1] * 8
    assert verify(old / "data.beton").ok


def test_a_killed_conversion_of_before_starts_anew_and_gives_the_same_file(old):
    """Going on would turn photographs by their Exif data from the middle on; these have none."""
    convert_folder(Path("images"), Path("half.beton"), WriteOptions(workers=0, page_size=64 << 10))
    assert (old / "half.beton").read_bytes() == (old / "data.beton").read_bytes()
    now, then = (json.loads(manifest_path(old / name).read_text()) for name in ("half.beton", "data.beton"))
    assert now["options"].pop("upright") and now == then


def test_a_run_of_before_is_reported_and_its_checkpoint_predicts(old):
    run = load_run(old / "whole")
    assert (run.steps, run.finished, len(run.evaluations)) == (12, True, 3)
    assert load_trained(old / "run", torch.device("cpu")).classes == ["astronaut", "coffee"]
    assert main(["report", "whole", "--mistakes=never"]) == 0
