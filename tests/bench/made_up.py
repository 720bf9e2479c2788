"""Results of `fastft bench` that nobody measured: every number is made up, and the page says so. Never published."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from fastft.machine.bench_result import FORMAT, Case, Contender, Images, Machine, Measure, Result, Round, Session

COMMAND = "fastft bench all --images imagenet-sample"
MADE_UP = "Made up by a test: nobody measured these figures."
GPU = "made-up GPU"
# images per CPU second with the whole recipe: small and original files
RATES = {
    "fastft": (1485, 1007), "torchvision v2": (330, 310), "simplejpeg, OpenCV": (402, 340), "timm": (248, 245),
    "DALI CPU": (193, 191), "WebDataset": (236, 232), "LitData": (241, 238), "SPDL": (301, 290),
}  # fmt: skip
PARTS = {
    "fastft": {"read": 9, "entropy decoding": 160, "inverse DCT and colour": 90, "resize": 118, "ops": 200,
               "normalise and erase": 60, "hand-over": 36},
    "timm": {"read": 90, "entropy decoding": 1100, "inverse DCT and colour": 900, "resize": 800, "ops": 700,
             "normalise and erase": 400, "hand-over": 200},
}  # fmt: skip
STEP = {
    "start": 2.0,
    "wait": 0.1,
    "forward": 9.0,
    "backward": 18.0,
    "optimizer": 1.0,
    "ema": 0.4,
    "read": 2.0,
    "decode": 40.0,
}
SMALL, ORIGINAL = "500 px files", "original files"
PER_CORE = "images per CPU second"


class Maker:
    """Contenders with rounds around a value, by a seeded generator. scale: of fastft's values. spread: share of the value."""

    def __init__(self, seed: int = 0, scale: float = 1.0, spread: float = 0.03) -> None:
        self.random, self.scale, self.spread = random.Random(seed), scale, spread

    def contender(self, name: str, value: float, figures: Mapping[str, float] | None = None, **more: Any) -> Contender:
        scale = self.scale if name == "fastft" else 1.0
        values = [value * scale * self.random.uniform(1 - self.spread, 1 + self.spread) for _ in range(5)]
        rounds = [Round(value=v, images=700, wall=1.0, cpu=1.0, figures=dict(figures or {})) for v in values]
        return Contender(name=name, rounds=rounds, **more)

    def case(self, values: Mapping[str, float], **setting: str | int | float) -> Case:
        return Case(setting=setting, contenders=[self.contender(name, value) for name, value in values.items()])


def result(
    *, seed: int = 0, scale: float = 1.0, cpu: str = "made-up processor", commit: str = "0123456789abcdef",
    date: str = "2026-11-30T12:00:00+00:00", gpu: str | None = None, measures: Sequence[Measure] | None = None,
) -> Result:  # fmt: skip
    """The measures of `fastft bench all`, with `gpu` also those that need one."""
    make = Maker(seed, scale)
    return Result(
        format=FORMAT,
        fastft="0.3.0",
        commit=commit,
        changed=False,
        quick=False,
        machine=Machine(
            cpu=cpu, instruction_sets=["sse4_2", "avx2"], cores=16, memory_gib=128, kernel="6.18.44",
            system="Debian GNU/Linux 13 (trixie)", python="3.11.7", libraries={"torch": "2.13.0", "timm": "1.0.31"},
            gpu=gpu, gpus=int(gpu is not None), driver="580.1" if gpu else None,
        ),
        images=Images(what="700 images of a folder", count=700, mean_kb=112.4),
        sessions=[
            Session(command=COMMAND, date=date, seconds=1810, load_before=0.4, load_after=1.9, steal=0.003)
        ],
        measures=list(measures) if measures is not None else [*data_path(make), *training(make, gpu is not None)],
        notes=[MADE_UP],
    )  # fmt: skip


def data_path(make: Maker) -> list[Measure]:
    whole, originals = (make.case({name: rates[k] for name, rates in RATES.items()}) for k in range(2))
    whole.contenders[1].differences = ["other RandAugment ops, one magnitude"]
    whole.contenders.append(Contender(name="DALI GPU", skipped="not installed: pip install nvidia-dali-cuda120"))
    decode = make.case({"fastft": 2590, "stock FFCV": 915, "DALI CPU": 880, "libjpeg-turbo": 3150})
    decode.contenders[-1].limit = True
    split = Case(setting={}, contenders=[make.contender(n, sum(p.values()), p) for n, p in PARTS.items()])
    threads = [make.case({n: r[0] * t * (1 - 0.01 * t) for n, r in RATES.items()}, threads=t) for t in (1, 2, 4, 8, 16)]
    sizes = [make.case({n: r[0] * (224 / s) ** 0.6 for n, r in RATES.items()}, size=s) for s in (128, 224, 384)]
    cold = Case(setting={}, contenders=[make.contender("fastft", 2070, {"read_mb": 71.0}), make.contender("timm", 297)])
    crop = make.case({"fastft": 1820, "stock FFCV": 665, "timm": 349})
    first, memory = (
        make.case(dict(zip(("fastft", "timm", "stock FFCV"), values, strict=True)))
        for values in ((0.8, 2.5, 13.5), (603, 945, 1566))
    )
    opening = [
        make.case({"fastft": 0.5, "stock FFCV": 3.6}, samples=1281167, files=1),
        make.case({"fastft": 1.6}, samples=20_000_000, files=64),
    ]
    small, original = {"files": SMALL, "size": 224, "batch": 64}, {"files": ORIGINAL, "size": 224, "batch": 64}
    return [
        measure("decode.crop", "Decoding a random crop", [decode], setting=small),
        measure("augment.split", "Time of one image", [split], "µs per image", better="lower", setting=small),
        measure("loader.recipe.core", "Loader, whole recipe, one thread", [whole], setting=small),
        measure("loader.recipe", "Loader, whole recipe", threads, "images/s", setting=small),
        measure("loader.recipe-originals.core", "Loader, whole recipe, original files", [originals], setting=original),
        measure("loader.crop.core", "Loader, crop and flip", [crop], setting=small),
        measure("loader.sizes", "Loader, whole recipe, by image size", sizes, setting={"files": SMALL}),
        measure("loader.cold", "Loader, files not in the page cache", [cold], "images/s"),
        measure("loader.first", "First batch", [first], "s", better="lower"),
        measure("loader.memory", "Peak memory", [memory], "MB", better="lower"),
        measure("loader.open", "Opening large files", opening, "s", better="lower"),
        measure("convert", "Conversion", [make.case({"fastft": 977, "FFCV DatasetWriter": 490})], "images/s"),
    ]  # fmt: skip


def training(make: Maker, gpu: bool) -> list[Measure]:
    rate = 2400.0 if gpu else 1.47
    step = make.case({"fastft": rate, "timm": rate / 1.3}, model="ViT-B/16", size=224, dtype="bf16", batch=128)
    e2e = Case(
        setting={"model": "final_b16", "size": 224, "batch": 256},
        contenders=[
            make.contender("fastft", rate * 0.97, {"mfu": 0.26, "waiting": 0.004, **STEP}),
            make.contender("timm", rate / 2.1, {"waiting": 0.4}),
        ],
    )  # fmt: skip
    found = [
        measure("step.train", "Training step", [step], "images/s"),
        measure("e2e.train", "End to end", [e2e], "images/s"),
    ]
    if gpu:
        kernels = [
            Case(
                setting={"augment": name},
                contenders=[make.contender("fastft", ms, {"gb": 1.4, "bandwidth_share": 0.6})],
            )
            for name, ms in (("rand-m9-mstd0.5-inc1", 1.3), ("3aug", 0.9))
        ]
        copy = Case(setting={}, contenders=[make.contender("fastft", 2.1, {"gb": 0.04})])
        loader = make.case({"fastft": 30_000, "DALI GPU": 9_000})
        found += [
            measure("augment.gpu", "Augmentation kernels", kernels, "ms per batch", better="lower"),
            measure("augment.copy", "Copy to the device", [copy], "ms per batch", better="lower"),
            measure("loader.gpu", "Loader to the GPU, whole recipe", [loader], "images/s"),
        ]
    return found


def measure(key: str, title: str, cases: Sequence[Case], unit: str = PER_CORE, **more: Any) -> Measure:
    bench = key.partition(".")[0]
    about = "What it measures, in a sentence."
    return Measure(key=key, bench=bench, title=title, unit=unit, about=about, cases=list(cases), **more)
