"""The training step is timm's, and all that is measured of it runs; the images of a benchmark."""

import hashlib
import subprocess
import time
from types import SimpleNamespace

import pytest
import torch
from timm.optim import create_optimizer_v2

from beton_tools.base.errors import UserError
from fastft.bench import augment_bench, e2e_bench, measure, step_bench
from fastft.bench.dataset import RESIZED, Images, Workspace, find_images
from fastft.bench.harness import Contender, Options, Rounds
from fastft.bench.measure import run_plan
from fastft.bench.step_bench import LR, WEIGHT_DECAY, peer_step, random_batch, timm_model
from fastft.bench.task import Task, Work
from fastft.export.to_timm import timm_state
from fastft.machine.distributed import World
from fastft.machine.precision import choose_precision
from fastft.model import Arch, Classifier, build_classifier
from fastft.optim import build_adamw, layer_groups, optimizer_groups, set_lr
from fastft.train.step import Step, StepChoice
from tests.written import write_crops


def test_our_training_step_has_the_loss_curve_of_timms():
    arch = Arch(
        image_size=32, patch_size=8, width=64, layers=2, heads=2, mlp_width=256, quick_gelu=True, ln_pre=True,
        norm_eps=1e-5, layer_scale=False, embed_dim=32,
    )  # fmt: skip
    step_, model = our_parts(arch)
    theirs = timm_model(arch)
    theirs.load_state_dict(timm_state(SimpleNamespace(model=model)))
    torch.manual_seed(1)
    batches = [random_batch(arch, 8) for _ in range(4)]
    optimizer = create_optimizer_v2(theirs, opt="adamw", lr=LR, weight_decay=WEIGHT_DECAY)
    their_step = peer_step(theirs, "fp32", optimizer)
    curves: tuple[list[float], list[float]] = ([], [])
    for images, labels in 5 * batches:
        step_.reset_loss()
        step_.micro_batch(images, labels, step=0, last=True)
        step_.update()
        curves[0].append(step_.loss_sum.item())
        curves[1].append(their_step(images, labels).item())
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)
    assert curves[0][-1] < curves[0][0] - 0.3


def our_parts(arch: Arch) -> tuple[Step, Classifier]:
    torch.manual_seed(0)
    model = build_classifier(arch, step_bench.CLASSES, freeze_conv1=False)
    groups = optimizer_groups(model, layer_groups(model, arch.layers, 1.0, WEIGHT_DECAY))
    optimizer = build_adamw(groups, betas=(0.9, 0.999), eps=1e-8)
    set_lr(optimizer, LR)
    precision = choose_precision("fp32", torch.device("cpu"))
    made = Step(
        model, optimizer, None, World(0, 1, 0, torch.device("cpu")), precision, label_smoothing=step_bench.SMOOTHING
    )
    made.connect(StepChoice())
    return made, model


def in_this_process(contenders: list[Contender], rounds: int, threads: int) -> Rounds:
    """`alternate` without processes; the cases' figures mean nothing."""
    found = Rounds({c.name: c for c in contenders})
    for contender in contenders:
        for name, arm in contender.make(**contender.arguments).items():
            began = time.perf_counter()
            trials = [{**({"count": c} if isinstance(c := arm(), int) else c)} for _ in range(rounds)]
            wall = time.perf_counter() - began
            found.trials.setdefault(contender.name, {})[name] = [{"wall": wall, "cpu": wall, **t} for t in trials]
    return found


def test_everything_that_a_gpu_is_measured_by_runs_with_a_tiny_tower(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "alternate", in_this_process)
    monkeypatch.setattr(augment_bench, "GPU_REPEATS", 1)
    monkeypatch.setattr(step_bench, "data_sheet_flops", lambda device, dtype: 1e15)
    case = step_bench.Case("T", 32, "bf16", 2, 1)
    monkeypatch.setattr(step_bench, "cases", lambda quick: [case])
    options = Options(Workspace(tmp_path, Images([], "none")), rounds=2, threads=1)
    found = {m.key: m for m in run_plan(step_bench.PLANS[0], options) if not isinstance(m, str)}
    assert found.keys() == {"step.train", "step.frozen", "step.mfu"}
    for one in found.values():
        assert {"fastft", "timm"} <= {c.name for c in one.cases[0].measured}
        assert one.cases[0].setting["size"] == 32 and one.setting["rounds"] == 2
    arms = augment_bench.gpu_augment("cpu", ["none"], size=32, batch=2)
    assert arms["none"]() == 2


def test_a_cpu_has_no_mfu(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "alternate", in_this_process)
    monkeypatch.setattr(step_bench, "cases", lambda quick: [step_bench.Case("T", 32, "fp32", 2, 1)])
    options = Options(Workspace(tmp_path, Images([], "none")), rounds=1, threads=1, peers=())
    found = {m.key: m for m in run_plan(step_bench.PLANS[0], options) if not isinstance(m, str)}
    assert found.keys() == {"step.train", "step.frozen"}
    assert not any(r.figures for m in found.values() for c in m.cases[0].contenders for r in c.rounds)


def test_a_training_round_reports_the_time_split_of_step_and_loader(tmp_path, photographs, monkeypatch):
    monkeypatch.setattr(e2e_bench, "_batch", lambda options: 2)
    write_crops(tmp_path / "images", photographs, {"chelsea": 8, "coffee": 8}, suffix="jpg")
    paths = sorted((tmp_path / "images").glob("*/*"))
    options = Options(Workspace(tmp_path, Images(paths, "coffee")), rounds=1, threads=1, quick=True)
    sections = e2e_bench._sections(options, options.workspace.beton(RESIZED))
    trial = e2e_bench.train_recipe(Task(Work.TRAIN, {}, 224, 2, 1), sections)["pass"]()
    assert trial["count"] == 14  # of 16; the first step is not counted
    assert trial["wall"] == pytest.approx(sum(trial.get(part, 0) for part in e2e_bench.STEP_PARTS))
    assert {"forward", "backward", "decode", "augment"} <= trial.keys()


def test_the_images_checksum_is_what_sha256sum_gives(tmp_path, photographs):
    write_crops(tmp_path / "images", photographs, {"chelsea": 2, "coffee": 1}, suffix="jpg")
    images = find_images(tmp_path / "images", tmp_path, 3)
    command = "sha256sum */*.jpg | cut -c1-64 | sha256sum | cut -c1-64"
    done = subprocess.run(command, shell=True, cwd=tmp_path / "images", capture_output=True, text=True, check=True)
    assert images.described().sha256 == done.stdout.strip()
    workspace = Workspace(tmp_path, images)
    path = workspace.beton(RESIZED)
    assert workspace.sha256 == {RESIZED: hashlib.sha256(path.read_bytes()).hexdigest()}
    next((tmp_path / "images").glob("*/*")).write_bytes(b"another")
    assert images.described().sha256 != done.stdout.strip()


def test_a_folder_without_images_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="one folder per class"):
        find_images(tmp_path, tmp_path, 4)


@pytest.mark.parametrize(("hardware", "dtypes"), [(True, ["fp32", "bf16"]), (False, ["fp32"])])
def test_a_cpu_that_emulates_bf16_is_measured_in_fp32_alone(monkeypatch, hardware, dtypes):
    monkeypatch.setattr(step_bench, "cpu_has_bf16", lambda: hardware)
    assert all([case.dtype for case in step_bench.cases(quick)] == dtypes for quick in (False, True))
