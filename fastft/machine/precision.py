"""Automatic mixed precision by hardware: fp16 with a loss scaler on V100, bf16 where it is native, else fp32."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from beton_tools.base.errors import UserError

INITIAL_SCALE = 2.0**12  # at the reference's 2**7 many gradients are 0 in the first steps (docs/v100.md)
# Clean steps until the scale doubles: the reference's (DeepSpeed), and from YOUNG_STEPS on PyTorch's default. Each doubling that
# overflows costs one skipped step, and the reference's scale has reached its final range after three epochs of 625 steps
YOUNG_INTERVAL, GROWTH_INTERVAL, YOUNG_STEPS = 128, 2000, 2000
AMPERE = (8, 0)  # first compute capability with native bf16


@dataclass(frozen=True)
class Precision:
    """The autocast dtype, and whether gradients need a loss scaler (`scaled`).

    half_residual: training runs a half-precision copy of the model (`fastft.optim.HalfCopy`) instead of autocast.
    """

    dtype: torch.dtype
    device_type: str
    half_residual: bool = False

    @property
    def scaled(self) -> bool:
        return self.dtype == torch.float16

    @property
    def name(self) -> str:
        """float32, bfloat16 or float16."""
        return str(self.dtype).removeprefix("torch.")

    def autocast(self) -> AbstractContextManager:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device_type, self.dtype)

    def training_context(self) -> AbstractContextManager:
        """Return the context for a training step's forward pass: autocast, unless a half-precision copy is used."""
        return nullcontext() if self.half_residual else self.autocast()

    def scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(
            self.device_type, init_scale=INITIAL_SCALE, growth_interval=YOUNG_INTERVAL, enabled=self.scaled
        )


def choose_precision(amp: str, device: torch.device, half_residual: str = "off") -> Precision:
    """Choose the autocast precision.

    Args:
        amp: 'auto' is fp16 below compute capability 8.0, bf16 on newer GPUs and on CPUs that have it, else fp32.
        half_residual: 'on', 'off', or 'auto': on for fp16 on GPUs below compute capability 8.0, which lack
            fast bf16.

    Raises:
        UserError: fp16 on the CPU, which has no fast fp16 training, or half_residual 'on' in fp32.
    """
    if amp == "auto":
        amp = _best_on_gpu(device) if device.type == "cuda" else ("bf16" if cpu_has_bf16() else "fp32")
    if amp == "fp16" and device.type == "cpu":
        raise UserError("train.amp is fp16, which needs a GPU. Use --train.amp=bf16 or fp32")
    if half_residual == "on" and amp == "fp32":
        raise UserError("train.half_residual is on, which needs half precision. Use --train.amp=fp16 or bf16")
    if half_residual == "auto" and amp == "fp16" and device.type == "cuda":
        half_residual = "on" if _best_on_gpu(device) == "fp16" else "off"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    return Precision(dtype, device.type, half_residual == "on")


def inference_precision(amp: str, device: torch.device) -> Precision:
    """Return the training precision, except that a CPU does not run fp16."""
    return choose_precision("auto" if (amp, device.type) == ("fp16", "cpu") else amp, device)


def cpu_has_bf16() -> bool:
    """Return True if the CPU multiplies bf16 faster than fp32.

    CPUs with AMX do, and AMD's with AVX512-BF16. Intel's AVX512-BF16 reaches 0.6 of the fp32 rate.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "amx_bf16" in flags or ("avx512_bf16" in flags and "AuthenticAMD" in flags)


def _best_on_gpu(device: torch.device) -> str:
    return "bf16" if torch.cuda.get_device_capability(device) >= AMPERE else "fp16"
