"""Time of a run outside its training steps: assumptions that are shown, and replaced by measurements."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from beton_tools.base.errors import UserError
from fastft.cost.benchmark_file import read_bench

# whole recipe, images/s; assumed: below the 640 of stock FFCV's crop and flip on one core
IMAGES_PER_CORE = 500.0
EVAL_IMAGES_PER_CORE = 400.0  # whole images decoded and resized, images/s; assumed
# physical cores (two vCPU each) per GPU of p3.16xlarge, p4d.24xlarge, p5.48xlarge, p5en.48xlarge and p6-b200.48xlarge
_CORES_PER_GPU = {"V100": 4.0, "A100": 6.0, "H100": 12.0, "H200": 12.0, "B200": 12.0}
_DEFAULT_CORES = 4.0  # assumed for other GPUs

SOURCES = {
    "loader_rate": "training images/s that the loader makes per GPU",
    "eval_loader_rate": "validation images/s that the loader makes per GPU",
    "pass_start_seconds": "start of one pass over the validation images, in seconds",
    "start_seconds": "process start, JIT compilation, weights, first batch, in seconds",
    "checkpoint_bytes_per_second": "bytes/s at which checkpoints are written",
}


@dataclass(frozen=True)
class Overheads:
    """Rates are images/s per GPU. `measured` lists the fields that were measured."""

    loader_rate: float = IMAGES_PER_CORE * _CORES_PER_GPU["V100"]
    eval_loader_rate: float = EVAL_IMAGES_PER_CORE * _CORES_PER_GPU["V100"]
    pass_start_seconds: float = 2.0  # assumed: the loader is kept between evaluations
    pass_per_model: bool = False  # raw and EMA model share one pass over the images
    start_seconds: float = 120.0  # assumed, once
    checkpoint_bytes_per_second: float = 500e6  # assumed: one local SSD
    measured: tuple[str, ...] = ()

    def describe(self) -> list[dict[str, Any]]:
        """One row per assumption: name, what, value, basis."""
        return [
            {
                "name": f.name,
                "what": SOURCES[f.name],
                "value": getattr(self, f.name),
                "basis": "measured" if f.name in self.measured else "assumed",
            }
            for f in fields(self)
            if f.name in SOURCES
        ]


FASTFT = Overheads()

# The paper's own runs: one pass per model, with new worker processes. The start of a pass is fitted to the
# B/16 log: (21,714 s of wall time - 50 x 625 x 0.6032 s of steps) / 50 / 2 passes - 4.9 s of forward. The
# same figure gives 5 % less than the log of the L/14 run, which also wrote a 5 GB checkpoint every epoch.
REFERENCE = Overheads(
    loader_rate=float("inf"),
    eval_loader_rate=float("inf"),
    pass_start_seconds=23.7,
    pass_per_model=True,
    start_seconds=0.0,
    checkpoint_bytes_per_second=float("inf"),
)


@dataclass(frozen=True)
class Measured:
    """Figures of a benchmark file. `mfu` belongs to `gpu`; the loader's rates are per core."""

    path: Path
    gpu: str = ""
    mfu: float | None = None
    loader_per_core: float | None = None
    eval_loader_per_core: float | None = None


ROLES = ("mfu", "loader_per_core", "eval_loader_per_core")


def read_measured(path: Path) -> Measured:
    """Read fastft's figures that have a `role` in a benchmark file (docs/bench-schema.md).

    Raises:
        UserError: not a benchmark file, a quick run, no measure with such a role, or an impossible figure.
    """
    document = read_bench(path)
    if document.get("quick"):
        raise UserError(
            f"{path} comes from a quick run, whose figures are meaningless; run fastft bench without --quick"
        )
    found: dict[str, Any] = {}
    for measure in document["measures"]:
        role = measure.get("role")
        own = next((c for c in measure["contenders"] if c["name"] == "fastft" and "median" in c), None)
        if role in ROLES and own is not None:
            found[role] = _plausible(path, role, float(own["median"]))
            if role == "mfu":
                found["gpu"] = str(measure.get("setting", {}).get("gpu", "a GPU without a name"))
    if not found:
        raise UserError(f"{path} has no figure that costs depend on; run fastft bench all")
    return Measured(path, **found)


def _plausible(path: Path, role: str, value: float) -> float:
    if value <= 0 or (role == "mfu" and value > 1):
        bound = "above 0 and at most 1" if role == "mfu" else "above 0"
        raise UserError(f"{path}: {role} is {value:g}; it must be {bound}; measure again with fastft bench")
    return value


def with_measured(over: Overheads, measured: Measured, cores: float) -> Overheads:
    """`over` with measured loader rates."""
    rates = {"loader_rate": measured.loader_per_core, "eval_loader_rate": measured.eval_loader_per_core}
    known: dict[str, Any] = {name: rate * cores for name, rate in rates.items() if rate is not None}
    return replace(over, **known, measured=(*over.measured, *known))


def cores_per_gpu(gpu: str) -> float:
    """CPU cores beside one GPU of a usual cloud machine; `gpu` is a name in GPUS."""
    return _CORES_PER_GPU.get(gpu, _DEFAULT_CORES)


def with_cores(over: Overheads, cores: float) -> Overheads:
    return replace(over, loader_rate=IMAGES_PER_CORE * cores, eval_loader_rate=EVAL_IMAGES_PER_CORE * cores)
