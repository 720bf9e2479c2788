"""A training in a process of its own, for `test_trainings`: `python -m tests.fake_gpu.run_training RECIPE [--option=value ...]`.

Values mean nothing on this card, so what reads them is left out: the check for NaN, the comparison of candidates with eager,
and the loss scale.
`FASTFT_GLOO` gives NCCL's part to gloo, which the card can serve. `FASTFT_DEVICES` is a folder in place of /dev.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from fastft.cli import main
from fastft.machine import usable_gpu
from fastft.model import attention
from fastft.train import step, step_choice
from tests.fake_gpu.card import COUNTS, counting

STEADY = 3  # steps until everything is allocated


def refuse(*_: object) -> torch.Tensor:
    raise RuntimeError("cuDNN asks the card for more than it answers")


def without_values() -> None:
    step.Step.find_divergence = lambda self, *_, **__: None  # type: ignore[method-assign]
    step_choice.compare = lambda *_: None
    state_dict = torch.amp.GradScaler.state_dict
    torch.amp.GradScaler.state_dict = lambda self: state_dict(self) | ({"scale": 1.0} if self.is_enabled() else {})  # type: ignore[method-assign]
    torch.backends.cuda.enable_cudnn_sdp(False)
    attention.ATTENTION_KERNELS["cudnn"] = refuse
    if "FASTFT_DEVICES" in os.environ:
        usable_gpu.DEVICES = Path(os.environ["FASTFT_DEVICES"])
    if "FASTFT_GLOO" in os.environ:
        start = torch.distributed.init_process_group
        torch.distributed.init_process_group = lambda backend, **options: start("gloo", **options | {"device_id": None})


def count_steps() -> None:
    """Print what each steady step asks for."""
    from fastft.train.trainer import Trainer

    whole, done = Trainer._train_step, [0]

    def counted(self: Any, *arguments: Any) -> None:
        with counting() as asked:
            whole(self, *arguments)
        done[0] += 1
        if done[0] > STEADY:
            print("step", *(f"{name}={asked[name]}" for name in COUNTS), f"work={asked.work}", flush=True)

    Trainer._train_step = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    without_values()
    count_steps()
    sys.exit(main(["train", *sys.argv[1:]]))
