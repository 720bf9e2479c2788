"""One process or many: what `torchrun` (or Slurm through it) says, and the few collectives that training needs."""

import os
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from beton_tools.errors import UserError
from fastft.train.exceptions import LoneError, NonFinite, PeerCrashed, PeerFailed, PeerLost, Preempted

DEFAULT_TIMEOUT = timedelta(minutes=10)
# NCCL's watchdog aborts the process without a word: gloo, whose errors can be caught, is to notice a lost peer before it
NCCL_PATIENCE = timedelta(minutes=5)
PERMANENT = re.compile("ncclInvalid|Duplicate GPU")  # of NCCL: misuse, which another try does not mend
_BAD_INPUT, _CRASH = "fastft/bad-input", "fastft/crash"  # where a process that goes alone leaves word
STORE_SECONDS = 5
Answer = TypeVar("Answer")
EXPECTED = (UserError, Preempted, NonFinite)  # each says its line by itself


@dataclass
class World:
    """This process's place among all. A single process needs no process group."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    timeout: timedelta = DEFAULT_TIMEOUT
    _control: dist.ProcessGroup | None = field(default=None, repr=False)
    _founder: bool = field(default=False, repr=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> "World":
        if self.size > 1:
            self._founder = not dist.is_initialized()  # else inside a sweep, whose trainings share one group
            if self._founder:
                on_gpu = self.device.type == "cuda"
                dist.init_process_group(
                    "nccl" if on_gpu else "gloo", timeout=self.timeout + NCCL_PATIENCE * on_gpu
                )
            # flags travel over gloo on the CPU, so that asking for them never waits for the GPU
            self._control = dist.new_group(backend="gloo", timeout=self.timeout)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Where a peer is lost that left word of why, that is the error; one's own crash is left word of."""
        # after an error the others may be gone, and an orderly farewell would wait for them
        if self.size > 1 and self._founder and dist.is_initialized() and error is None:
            dist.destroy_process_group()
        if self.size == 1 or not isinstance(error, Exception) or isinstance(error, EXPECTED):
            return
        if not (isinstance(error, RuntimeError) and self.lost_peer(error)):
            self._leave(
                _CRASH, f"process {self.rank} ended with {type(error).__name__}; its output says more"
            )
            return
        words = _ask_store(_read_words) or {}
        if _BAD_INPUT in words:
            raise PeerFailed(words[_BAD_INPUT]) from None
        if _CRASH in words:
            raise PeerCrashed(words[_CRASH]) from None

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

    def max(self, value: int) -> int:
        """The largest value of any process."""
        if self.size == 1:
            return value
        values = torch.tensor([value])
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self._control)
        return int(values.item())

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.max(int(flag)))

    def agree(self, error: str | None, standing: Mapping[str, str]) -> None:
        """Call once per process after set-up: with what went wrong, or None and what must be the same everywhere.

        Raises:
            UserError: in every process, what went wrong in any; or what of `standing` differs between them.
        """
        if self.size == 1:
            return
        answers: list[Any] = [None] * self.size
        dist.all_gather_object(answers, (error, dict(standing)), group=self._control)
        failed = [(rank, text) for rank, (text, _) in enumerate(answers) if text is not None]
        if failed:
            rank, text = failed[0]
            raise UserError(text if len(failed) == self.size else f"{text} (process {rank})")
        for what, mine in standing.items():
            others = [rank for rank, (_, theirs) in enumerate(answers) if theirs[what] != mine]
            if others:
                raise UserError(
                    f"processes {self.rank} and {others[0]} have different {what}; all need the same recipe, the same "
                    ".beton files, and a train.run_dir that all hosts share"
                )

    def lost_peer(self, error: RuntimeError) -> bool:
        """Whether the error says that another process cannot be reached."""
        text = str(error)
        if self.size == 1 or PERMANENT.search(text):
            return False
        return isinstance(error, dist.DistError) or "gloo/" in text or "NCCL" in text

    def leave_word(self, error: UserError) -> UserError:
        """`error` of this process alone, marked as such; the others, who will only miss it, find its text."""
        if self.size == 1:
            return error
        self._leave(_BAD_INPUT, f"{error} (process {self.rank})")
        return LoneError(str(error))

    def _leave(self, where: str, text: str) -> None:
        _ask_store(lambda store: store.set(where, text))

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self._control)


def _read_words(store: dist.Store) -> dict[str, str]:
    """What other processes left before they went."""
    return {where: store.get(where).decode() for where in (_BAD_INPUT, _CRASH) if store.check([where])}


def _ask_store(question: Callable[[dist.Store], Answer]) -> Answer | None:
    """Of the process group's store, which under torchrun lives in the launcher and outlives the processes.

    None where no answer comes within STORE_SECONDS: its host may be cut off, and the store has no time-out for that.
    """
    answers: list[Answer] = []

    def ask() -> None:
        with suppress(RuntimeError, ValueError):  # gone with the process that had it, or there is none yet
            answers.append(question(dist.distributed_c10d._get_default_store()))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(STORE_SECONDS)
    return answers[0] if answers else None


def find_world(device: str, timeout_minutes: float | None = None) -> World:
    """Read torchrun's environment variables and pick the device ('auto', 'cuda' or 'cpu').

    timeout_minutes: how long a process may keep the others waiting; None: 10, as long as writing a checkpoint may take.

    Raises:
        UserError: no GPU although 'cuda' was asked for, or more processes on a node than it has GPUs.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    timeout = DEFAULT_TIMEOUT if timeout_minutes is None else timedelta(minutes=timeout_minutes)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device is cuda, but torch sees no GPU; run 'nvidia-smi' or choose device cpu")
    if device == "cpu" or not torch.cuda.is_available():
        return World(rank, size, local_rank, torch.device("cpu"), timeout)
    if local_rank >= torch.cuda.device_count():
        raise LoneError(
            f"process {local_rank} of this node has no GPU ({torch.cuda.device_count()} there); lower --nproc-per-node"
        )
    torch.cuda.set_device(local_rank)
    return World(rank, size, local_rank, torch.device("cuda", local_rank), timeout)


def peer_lost(error: RuntimeError, after: str) -> PeerLost:
    return PeerLost(f"lost touch with another process ({first_sentence(error)}); {after}")


def first_sentence(error: RuntimeError) -> str:
    """Of a back end's message, without the place in its source and the advice that follows."""
    text = " ".join(str(error).split())
    return re.sub(r"^\[[^]]*\] ", "", text).split(". This is", 1)[0].split(". Exception", 1)[0]
