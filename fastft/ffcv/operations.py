"""The operations: crop decoders, and augmentation with normalisation on the CPU or the GPU."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State
from numba import objmode
from numba.core.errors import NumbaWarning

from beton_tools.base.errors import UserError
from beton_tools.base.pixels import CHANNELS
from beton_tools.read.beton_set import BetonSet
from fastft.augment.cpu import CpuAugment
from fastft.augment.draw import draw_plan, eval_plan
from fastft.augment.erase import DTYPES, UINT8
from fastft.augment.policies import AugmentPolicy
from fastft.data.stage import CpuStage, Output
from fastft.ffcv.loader_thread import Pass, current_pass, reporting
from fastft.recipe.constants import CLIP_MEAN, CLIP_STD

# a decoder runs compiled code that it calls from Python
warnings.filterwarnings("ignore", ".*object mode", NumbaWarning, r".*ffcv.operations")


class PixelStage(CpuStage):
    """A stage that returns the uint8 pixels before normalisation. Its plans must not erase."""

    def _augment(self, size: int) -> CpuAugment:
        augment = CpuAugment(self.policy, size)
        augment.finish = augment.finish._replace(dtype=UINT8)
        return augment


class _CropDecoder(SimpleRGBImageDecoder):
    """Runs fastft's stage for uint8 pixels in place of FFCV's decoder. You may change `output_size` between epochs."""

    def __init__(self, output_size: Sequence[int], seed: int | None = None) -> None:
        super().__init__()
        self.output_size, self.seed = output_size, seed
        self._stage: PixelStage | None = None
        self._opened: tuple[str, int] | None = None
        self._lock = threading.Lock()  # if a pass was left early, its thread may still be decoding
        self._side()

    def _side(self) -> int:
        height, width = self.output_size
        if height != width or height < 1:
            raise UserError(f"output_size is {tuple(self.output_size)}. Give two equal sides, 1 or more")
        return int(height)

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        shape, dtype = (self._side(), self._side(), CHANNELS), np.dtype(np.uint8)
        return replace(previous_state, jit_mode=True, shape=shape, dtype=dtype), AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable[..., Any]:
        run = reporting(self._decode)

        def decode(batch_indices, destination, metadata, storage_state):  # type: ignore[no-untyped-def]
            with objmode():  # FFCV compiles every decoder
                run(batch_indices, destination)
            return destination

        return decode

    def _decode(self, ids: np.ndarray, out: np.ndarray) -> None:
        given = current_pass(self.seed)
        ids = ids.astype(np.int64)
        with self._lock:
            stage = self._stage_for(given, out.shape[1])
            stage.fill(ids, out, lambda *stored: self._plan(given, out.shape[1], *stored))

    def _stage_for(self, given: Pass, size: int) -> PixelStage:
        """Return the stage for the loader's file, which is opened at the first batch."""
        if self._stage is None or self._opened != (given.path, given.workers):
            betons, self._opened = BetonSet.open(given.path, labelled=False), (given.path, given.workers)
            policy = AugmentPolicy("none", erase_prob=0.0)
            self._stage = PixelStage(betons, policy, Output(size), workers=given.workers, slots=0, batch=0)
            weakref.finalize(self, self._stage.close)
        if self._stage.size != size:
            self._stage.resize(size, 0)
        return self._stage

    def _plan(self, given: Pass, size: int, ids: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class RandomResizedCropRGBImageDecoder(_CropDecoder):
    """Random resized crop that decodes only the crop if the file has a crop index.

    Gives uint8 (S, S, 3), as FFCV's decoder.

    Args:
        output_size: (S, S).
        scale: limits for the crop's area, as fractions of the image's.
        ratio: limits for the crop's aspect ratio.
        hflip: how probable a horizontal flip is. It costs nothing here. 0 leaves it to FFCV's operation.
        interpolation: "bicubic" or "bilinear", both antialiased as in Pillow.
        seed: seed for the crops (default: the loader's).

    Raises:
        UserError: an argument has an impossible value.
    """

    def __init__(
        self,
        output_size: Sequence[int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        *,
        hflip: float = 0.0,
        interpolation: str = "bicubic",
        seed: int | None = None,
    ) -> None:
        super().__init__(output_size, seed)
        self.policy = AugmentPolicy(
            "none", scale=scale, ratio=ratio, hflip=hflip, interpolation=interpolation, erase_prob=0.0
        )

    def _plan(self, given: Pass, size: int, ids: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        return draw_plan(
            self.policy, seed=given.seed, epoch=given.epoch, sample_ids=ids, heights=heights, widths=widths, size=size
        )


class CenterCropRGBImageDecoder(_CropDecoder):
    """Resize the short side to S / ratio, then crop the central S x S.

    The images equal those from `fastft.data.loader.EvalLoader`.

    Args:
        output_size: (S, S).
        ratio: timm's `crop_pct`, such as 224 / 256.
        interpolation: "bicubic" or "bilinear", both antialiased as in Pillow.
    """

    def __init__(self, output_size: Sequence[int], ratio: float = 1.0, *, interpolation: str = "bicubic") -> None:
        super().__init__(output_size)
        self.ratio, self.interpolation = ratio, interpolation
        self._plan(Pass("", 0, 0, 1), 1, *np.ones((3, 1), np.int64))  # refuses an impossible ratio

    def _plan(self, given: Pass, size: int, ids: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        return eval_plan(ids, heights, widths, size, self.ratio, self.interpolation)


class Augment(Operation):
    """Augment, normalise and erase uint8 images where they are: on the CPU or, after `ToDevice`, on the GPU.

    Use it in place of FFCV's `ToTorchImage` and `NormalizeImage`, after `ToTensor`. It turns (B, S, S, 3) into (B, 3,
    S, S) in channels-last memory.

    Args:
        policy: "rand-m9-mstd0.5-inc1", "3aug", "augmix-m3-w3-d-1", ... (see `fastft.augment.policies.AugmentPolicy`).
            "none" only normalises and erases.
        vflip: how probable a vertical flip is.
        quarter_turns: how probable a turn by 0, 90, 180 or 270 degrees is.
        color_jitter: how strongly brightness, contrast and saturation change, as in timm.
        color_jitter_prob: how probable `color_jitter` is.
        erase_prob: how probable random erasing is.
        erase_mode: "pixel", "rand" or "const", as in timm.
        mean: mean for normalisation, for pixels between 0 and 1 (default: CLIP's).
        std: standard deviation for normalisation, as `mean`.
        dtype: torch.float32, torch.float16 or torch.bfloat16.
        seed: seed for the random choices (default: the loader's).

    Raises:
        UserError: an argument has an impossible value.
    """

    def __init__(
        self,
        policy: str = "none",
        *,
        vflip: float = 0.0,
        quarter_turns: float = 0.0,
        color_jitter: float = 0.0,
        color_jitter_prob: float = 1.0,
        erase_prob: float = 0.0,
        erase_mode: str = "pixel",
        interpolation: str = "bicubic",
        mean: tuple[float, float, float] = CLIP_MEAN,
        std: tuple[float, float, float] = CLIP_STD,
        dtype: torch.dtype = torch.float32,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.policy = AugmentPolicy(
            policy, hflip=0.0, vflip=vflip, quarter_turns=quarter_turns, color_jitter=color_jitter,
            color_jitter_prob=color_jitter_prob, erase_prob=erase_prob, erase_mode=erase_mode, interpolation=interpolation,
            mean=mean, std=std,
        )  # fmt: skip
        self.dtype, self.seed = dtype, seed
        self._name = str(dtype).removeprefix("torch.")
        if self._name not in DTYPES:
            raise UserError(f"augmentation writes {', '.join(DTYPES)}, not {self._name}")
        self._augment: Any = None
        self._lock = threading.Lock()

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery | None]:
        height, width, _ = previous_state.shape
        if height != width:
            raise UserError(f"Augment takes square images, not {height} x {width}")
        device = torch.device(previous_state.device)
        memory = AllocationQuery((height, width, CHANNELS), self.dtype, device) if device.type == "cpu" else None
        shape = (CHANNELS, height, width)
        return State(jit_mode=False, device=device, shape=shape, dtype=self.dtype), memory

    def generate_code(self) -> Callable[..., Any]:
        run = reporting(self._run)

        def augment(images, destination, batch_indices):  # type: ignore[no-untyped-def]
            return run(images, destination, batch_indices)

        augment.with_indices = True  # type: ignore[attr-defined]
        return augment

    def _run(self, images: Any, destination: torch.Tensor | None, ids: np.ndarray) -> torch.Tensor:
        images = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
        size = images.shape[1]
        with self._lock:
            if self._augment is None or self._augment.size != size:
                self._augment = self._new_augment(size, images.device)
            plan = self._plan(ids.astype(np.int64), size)
            offsets = np.arange(len(ids)) * (CHANNELS * size * size)
            flat = images.reshape(-1)
            if destination is None:
                tables = (torch.from_numpy(table).to(images.device) for table in (offsets, plan.view(np.uint8)))
                return self._augment(flat, *tables)
            bits = destination if self.dtype == torch.float32 else destination.view(torch.int16)
            self._augment(flat.numpy(), offsets, plan, bits.numpy())
        return destination.permute(0, 3, 1, 2)

    def _new_augment(self, size: int, device: torch.device) -> Any:
        if device.type == "cpu":
            return CpuAugment(self.policy, size, self._name)
        from fastft.augment.cuda import CudaAugment  # numba-cuda, which only machines with a GPU have

        return CudaAugment(self.policy, size, self.dtype, device)

    def _plan(self, ids: np.ndarray, size: int) -> np.ndarray:
        """Return the plan for images that are already cropped.

        Operations and boxes are drawn independently of the crop.
        """
        given, sides = current_pass(self.seed), np.full(len(ids), size)
        plan = draw_plan(
            self.policy, seed=given.seed, epoch=given.epoch, sample_ids=ids, heights=sides, widths=sides, size=size
        )
        plan["crop"], plan["resize"], plan["window"] = (0, 0, size, size), size, 0
        return plan
