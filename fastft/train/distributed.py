"""One process or many: what `torchrun` (or Slurm through it) says, and the few collectives that training needs."""

import os
from dataclasses import dataclass, field
from types import TracebackType

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from beton_tools.errors import UserError


@dataclass
class World:
    """This process's place among all. A single process needs no process group."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    _control: dist.ProcessGroup | None = field(default=None, repr=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> "World":
        if self.size > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
            # flags travel over gloo on the CPU, so that asking for them never waits for the GPU
            self._control = dist.new_group(backend="gloo")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model under DistributedDataParallel, where there is more than one process and something to train."""
        if self.size == 1:
            return model
        ids = [self.local_rank] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Element-wise sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._control)
        return bool(flags.item())

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self._control)


def find_world(device: str) -> World:
    """Read torchrun's environment variables and pick the device ('auto', 'cuda' or 'cpu').

    Raises:
        UserError: no GPU although 'cuda' was asked for, or more processes on a node than it has GPUs.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "train.device is cuda, but torch sees no GPU; run 'nvidia-smi' or set --train.device=cpu"
        )
    if device == "cpu" or not torch.cuda.is_available():
        return World(rank, size, local_rank, torch.device("cpu"))
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank} of this node has no GPU ({torch.cuda.device_count()} there); lower --nproc-per-node"
        )
    torch.cuda.set_device(local_rank)
    return World(rank, size, local_rank, torch.device("cuda", local_rank))
