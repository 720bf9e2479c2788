"""One process or many: what `torchrun` (also under Slurm) sets up, and the few collectives that training needs."""

import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from beton_tools.base import torchrun
from beton_tools.base.errors import UserError, first_line
from beton_tools.base.shared_arrays import share_arrays
from fastft.machine.exits import (
    EXIT_REQUEUE,
    GpuFailed,
    LocalRankError,
    NonFinite,
    PeerCrashed,
    PeerFailed,
    PeerLost,
    Preempted,
)
from fastft.machine.usable_gpu import refuse_unusable_gpu
from fastft.recipe.constants import DEVICES

DEFAULT_TIMEOUT = timedelta(minutes=10)
# a conversion may take very long, and waiting for it ends at once if process 0 ends
PREPARATION_TIMEOUT = timedelta(days=7)
# NCCL's watchdog aborts the process without a message. Gloo raises an exception, so it must time out first.
NCCL_EXTRA_TIMEOUT = timedelta(minutes=5)
# NCCL errors caused by misuse, which another try would repeat
PERMANENT = re.compile("ncclInvalid|Duplicate GPU")
# CUDA's texts for errors in a GPU or its links. As a rule, a program's own errors do not have them. NCCL repeats them
GPU_FAILURE = re.compile(
    "cuda (error|failure)[^\n]*(ECC|unspecified launch failure|NVLink|unknown error)", re.IGNORECASE
)
_BAD_INPUT, _CRASH, _GPU = (
    "fastft/bad-input",
    "fastft/crash",
    "fastft/gpu",
)  # store keys under which errors are published
STORE_SECONDS = 5
WAITING_SECONDS = 20.0  # nodes of one job start within seconds of each other
CHECK_NODES = "Check that every node has started and can reach this address"
EXPECTED_ERRORS = (UserError, Preempted, NonFinite, PeerCrashed)  # the process that raises them reports them
LAUNCHER_POLL_SECONDS = 0.5
STARTED_BY_TORCHRUN = "TORCHELASTIC_RUN_ID"  # in its processes' environment
# process number of `fastft.train.launch`, which may have ended during imports
LAUNCHER = "FASTFT_LAUNCHER"
Result = TypeVar("Result")


@contextmanager
def exit_without_launcher() -> Iterator[None]:
    """Print one line and exit with EXIT_REQUEUE if torchrun ends within the block.

    Use it only where nothing needs to be saved. torchrun hosts the store through which the processes connect. Without
    it the connection waits for its time limit, 10 minutes, in C++. Neither an exception nor a Python signal handler can
    end that wait.
    """
    if STARTED_BY_TORCHRUN not in os.environ:
        yield
        return
    launcher, connected = int(os.environ.get(LAUNCHER, os.getppid())), threading.Event()

    def watch() -> None:
        while not connected.wait(LAUNCHER_POLL_SECONDS):
            if os.getppid() != launcher:
                print(
                    "fastft: error: the launcher ended before all processes were connected. Start it again",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
                os._exit(EXIT_REQUEUE)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        connected.set()
        thread.join()


@contextmanager
def announce_waiting(rank: int) -> Iterator[None]:
    """Print one line per host if the block takes longer than WAITING_SECONDS: a host may never come, or be looked up wrongly."""
    connected = threading.Event()

    def watch() -> None:
        if not connected.wait(WAITING_SECONDS):
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            waited = f"process {rank} has waited {WAITING_SECONDS:.0f} s for the other processes at {place}"
            print(f"fastft: {waited}. {CHECK_NODES}", file=sys.stderr, flush=True)

    if torchrun.local_rank() == 0:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        connected.set()


@dataclass
class World:
    """This process's rank among all processes. A single process needs no process group."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    timeout: timedelta = DEFAULT_TIMEOUT
    problem: str | None = None  # why this process has no device. `with world` raises it in every process
    _control: dist.ProcessGroup | None = field(default=None, repr=False)
    _owns_group: bool = field(default=False, repr=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> "World":
        """Connect the processes.

        Raises UserError if a process has no device, or another kind of device than the others.
        """
        if self.size == 1:
            return self
        self._owns_group = not dist.is_initialized()  # the runs in a sweep share one group
        if self._owns_group:
            on_gpu = self.device.type == "cuda"
            limit = self.timeout + NCCL_EXTRA_TIMEOUT * on_gpu
            with exit_without_launcher(), announce_waiting(self.rank):
                store, _, _ = next(dist.rendezvous("env://", timeout=self.timeout))
                self._agree_on_device(store)
                # device_id makes NCCL start here: failures show before anything is prepared, and its memory counts as used
                dist.init_process_group(
                    "nccl" if on_gpu else "gloo", timeout=limit, device_id=self.device if on_gpu else None,
                    store=store, rank=self.rank, world_size=self.size,
                )  # fmt: skip
        # control messages use gloo on the CPU so that they never wait for the GPU
        self._control = dist.new_group(backend="gloo", timeout=self.timeout)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Publish this process's unexpected error, or replace a lost connection by the error that a peer published.

        Raises:
            GpuFailed: this process's GPU failed.
            PeerLost: a peer's GPU failed.
            PeerFailed: a peer met bad input.
            PeerCrashed: a peer ended with an unexpected error.
        """
        if isinstance(error, RuntimeError) and is_gpu_failure(error):
            failed = self._describe_gpu_failure(error)
            if self.size > 1:
                _query_store(lambda store: store.set(_GPU, failed))
            raise GpuFailed(failed) from None
        # after an error the group is not destroyed, because that would wait for processes that may no longer exist
        if self.size > 1 and self._owns_group and dist.is_initialized() and error is None:
            dist.destroy_process_group()
        if self.size == 1 or not isinstance(error, Exception) or isinstance(error, EXPECTED_ERRORS):
            return
        if not (isinstance(error, RuntimeError) and self.is_peer_loss(error)):
            text = f"process {self.rank} ended with {type(error).__name__}. See its output"
            _query_store(lambda store: store.set(_CRASH, text))
            return
        keys = (_BAD_INPUT, _GPU, _CRASH)
        published = _query_store(lambda store: {k: store.get(k).decode() for k in keys if store.check([k])}) or {}
        if _BAD_INPUT in published:
            raise PeerFailed(published[_BAD_INPUT]) from None
        if _GPU in published:
            raise PeerLost(published[_GPU]) from None
        if _CRASH in published:
            raise PeerCrashed(published[_CRASH]) from None

    def _agree_on_device(self, store: dist.Store) -> None:
        """Compare the processes' devices through the store, before NCCL or gloo is chosen: one would wait for the other.

        Raises UserError, the same in every process: some process has no device, or the kinds of device differ.
        """
        difference = self._find_device_difference(store)
        if difference is None:
            return
        store.set(f"fastft/told/{self.rank}", "")
        if self.is_main:  # it may host the store, which ends with it
            with suppress(RuntimeError):
                store.wait([f"fastft/told/{rank}" for rank in range(self.size)], timedelta(seconds=STORE_SECONDS))
        raise UserError(difference)

    def _find_device_difference(self, store: dist.Store) -> str | None:
        host = socket.gethostname()
        keys = [f"fastft/device/{rank}" for rank in range(self.size)]
        store.set(keys[self.rank], json.dumps([host, self.device.type, self.problem]))
        store.wait(keys, self.timeout)
        answers = [json.loads(answer) for answer in store.multi_get(keys)]
        named = [f"process {rank} on host {host}" for rank, (host, _, _) in enumerate(answers)]
        failed = [(name, problem) for name, (_, _, problem) in zip(named, answers, strict=True) if problem is not None]
        if failed:
            name, problem = failed[0]
            return cast(str, problem if len(failed) == self.size else f"{name}: {problem}")
        on = {kind: name for name, (_, kind, _) in zip(reversed(named), reversed(answers), strict=True)}
        if len(on) == 1:
            return None
        return (
            f"{on['cpu']} has no GPU, and {on['cuda']} has one. All processes need the same device type. "
            "Run fastft doctor on the first host, or leave it out"
        )

    def _describe_gpu_failure(self, error: RuntimeError) -> str:
        name = "GPU"
        with suppress(RuntimeError, AssertionError):  # it may not even tell its name
            name = torch.cuda.get_device_name(self.device)
        return (
            f"the GPU of process {self.rank} failed: {name}, {self.device}, on host {socket.gethostname()} "
            f"({first_line(error)}). The same command continues the run. If it fails again, leave this host out"
        )

    def wrap(self, model: nn.Module) -> nn.Module:
        """Wrap the model in DistributedDataParallel if there is more than one process."""
        if self.size == 1:
            return model
        ids = [self.local_rank] if self.device.type == "cuda" else None
        wrapped = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
        # all buffers are constants: towers with statistics, such as BatchNorm's, are refused (`timm_arch`)
        wrapped.broadcast_buffers = False  # as an argument it is deprecated
        return wrapped

    def equalise(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite each tensor with process 0's, as DistributedDataParallel does when it is created."""
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)

    def average(self, values: torch.Tensor) -> None:
        """Take the element-wise mean over all processes, in place. Half precision is divided before it is added."""
        dist.all_reduce(values.div_(self.size))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Take the element-wise sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Return all processes' rows, ordered by rank, in every process. A process may have no rows."""
        if self.size == 1:
            return rows
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, rows.cpu().numpy(), group=self._control)
        return torch.cat([torch.from_numpy(part) for part in gathered if len(part)])

    def max(self, value: int) -> int:
        if self.size == 1:
            return value
        values = torch.tensor([value])
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self._control)
        return int(values.item())

    def any(self, flag: bool) -> bool:
        return bool(self.max(int(flag)))

    def broadcast(self, value: Result | None) -> Result:
        """Return process 0's value in every process. The others may pass None."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0, group=self._control)
        return cast(Result, values[0])

    def in_main(self, work: Callable[[], Result]) -> Result:
        """Run `work` in process 0 while the others wait, and return its result in every process.

        Raises UserError if `work` raised it.
        """
        if self.size == 1:
            return work()
        group = dist.new_group(backend="gloo", timeout=PREPARATION_TIMEOUT)
        # process 0 may end at once, and gloo prints a line for each process that still connects to it
        dist.barrier(group=group)
        answers: list[Any] = [(None, None)]
        if self.is_main:
            try:
                answers = [(work(), None)]
            except UserError as error:
                answers = [(None, str(error))]
        dist.broadcast_object_list(answers, src=0, group=group)
        result, failure = answers[0]
        if failure is not None:
            raise UserError(failure)
        return cast(Result, result)

    def once_per_host(self, work: Callable[[], Result], key: str) -> Result:
        """Run `work` in one process of each host and return its result in all of them. They share the arrays in it.

        A process that cannot map the arrays, for example because it is in a container of its own, runs `work` itself.

        Args:
            work: its result can be pickled, and its arrays are not written to.
            key: what the result depends on. Processes with another key do not share it.

        Raises:
            UserError: `work` raised it on this host.
        """
        if self.size == 1:
            return work()
        group = dist.new_group(backend="gloo", timeout=PREPARATION_TIMEOUT)
        hosts: list[Any] = [None] * self.size
        dist.all_gather_object(hosts, (host_identity(), key), group=group)
        first, shared, failure, result = hosts.index(hosts[self.rank]), None, None, None
        if first == self.rank and hosts.count(hosts[first]) > 1:
            try:
                shared = share_arrays(work())  # what was made here is freed: this process maps the arrays too
            except UserError as error:
                failure = str(error)
            except OSError:
                shared = None
        answers: list[Any] = [None] * self.size
        dist.all_gather_object(answers, (shared, failure), group=group)
        offered, problem = answers[first]
        if offered is not None:
            with suppress(OSError):
                result = offered.map()
        dist.barrier(group=group)
        if shared is not None:
            shared.close()
        if problem is not None:
            raise UserError(problem)
        return work() if result is None else cast(Result, result)

    def together(self, work: Callable[[], Result], key: Callable[[Result], Mapping[str, str]]) -> Result:
        """Run `work` in every process and return this process's result.

        key: takes the result and returns what must be equal everywhere.

        Raises:
            UserError: `work` failed in some process, or an entry in the keys differs.
        """
        try:
            result = work()
        except UserError as error:
            self.check_consistent(str(error), {})
            raise
        self.check_consistent(None, key(result))
        return result

    def check_consistent(self, error: str | None, key: Mapping[str, str]) -> None:
        """Compare set-ups. Every process calls this once, with its error, or None and what must be equal everywhere.

        Raises UserError if set-up failed in some process, or if an entry in `key` differs between processes.
        """
        if self.size == 1:
            return
        answers: list[Any] = [None] * self.size
        dist.all_gather_object(answers, (error, dict(key)), group=self._control)
        failed = [(rank, text) for rank, (text, _) in enumerate(answers) if text is not None]
        if failed:
            rank, text = failed[0]
            raise UserError(text if len(failed) == self.size else f"{text} (process {rank})")
        for name, mine in key.items():
            others = [rank for rank, (_, theirs) in enumerate(answers) if theirs[name] != mine]
            if others:
                raise UserError(
                    f"processes {self.rank} and {others[0]} have different {name}. All processes need the same recipe, "
                    "the same .beton files, and a train.run_dir that all hosts share"
                )

    def is_peer_loss(self, error: RuntimeError) -> bool:
        """Return True if the error says that another process cannot be reached."""
        text = str(error)
        if self.size == 1 or PERMANENT.search(text):
            return False
        return isinstance(error, dist.DistError) or "gloo/" in text or "NCCL" in text

    def publish_error(self, error: UserError) -> UserError:
        """Publish an error that only this process has, and return it so that you can raise it.

        Peers would otherwise see only a lost connection.
        """
        if self.size == 1:
            return error
        text = f"{error} (process {self.rank})"
        _query_store(lambda store: store.set(_BAD_INPUT, text))
        return LocalRankError(str(error))

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self._control)


def host_identity() -> str:
    """Return what is the same in all processes that can use each other's process numbers: the kernel's start, the namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def is_gpu_failure(error: Exception) -> bool:
    """Return True if the error says that a GPU or its links failed, so that another GPU would have done the same work."""
    return isinstance(error, RuntimeError) and GPU_FAILURE.search(str(error)) is not None


def _query_store(query: Callable[[dist.Store], Result]) -> Result | None:
    """Run a query on the process group's store, which under torchrun lives in the launcher and outlives the processes.

    Returns None if there is no result within STORE_SECONDS: the store's host may be unreachable, and its calls have no
    time-out.
    """
    results: list[Result] = []

    def run() -> None:
        with suppress(RuntimeError, ValueError):  # there is no store any more, or not yet
            results.append(query(dist.distributed_c10d._get_default_store()))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(STORE_SECONDS)
    return results[0] if results else None


def find_world(device: str, timeout_minutes: float | None = None, option: str = "--device") -> World:
    """Read torchrun's environment variables and pick the device ('auto', 'cuda' or 'cpu').

    Args:
        timeout_minutes: how long a process may keep the others waiting. None means 10.
        option: the option with which the user set the device.

    Raises:
        UserError: torchrun's variables are incomplete, there is no such device, torch cannot use this machine's GPUs, or a
            node has more processes than GPUs. With several processes, `with world` raises all but the first, in every
            process.
    """
    torchrun.check_environment()
    rank, size, local_rank = torchrun.rank(), torchrun.world_size(), torchrun.local_rank()
    timeout = DEFAULT_TIMEOUT if timeout_minutes is None else timedelta(minutes=timeout_minutes)
    problem, chosen = None, torch.device("cpu")
    try:
        chosen = _choose_device(device, local_rank, option)
    except UserError as error:
        if size == 1:
            raise
        problem = str(error)  # the others are told, because they would wait for this process
    return World(rank, size, local_rank, chosen, timeout, problem)


def find_device(device: str, option: str = "--device") -> torch.device:
    """Pick the device ('auto', 'cuda' or 'cpu') for work that no other process takes part in.

    Raises UserError as `find_world` does.
    """
    torchrun.check_environment()
    return _choose_device(device, torchrun.local_rank(), option)


def _choose_device(device: str, local_rank: int, option: str) -> torch.device:
    if device not in DEVICES:
        raise UserError(f"{option} is {device}. Give {', '.join(DEVICES[:-1])} or {DEVICES[-1]}")
    if device == "cpu":
        return torch.device("cpu")
    refuse_unusable_gpu(f"use the CPU with --{option.removeprefix('--')}=cpu", local_rank)
    if not torch.cuda.is_available():
        if device == "cuda":
            raise UserError(f"{option} is cuda, but torch finds no GPU. Run 'nvidia-smi' or omit {option}")
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        asked = "--gpus-per-node instead of --gpus-per-task or --gpus-per-socket"
        by_slurm = f", or ask Slurm for {asked}, so that every process sees all GPUs" * ("SLURM_JOB_ID" in os.environ)
        raise UserError(
            f"process {local_rank} of this node has no GPU (found {count}). Lower --nproc-per-node to {count}{by_slurm}"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


@contextmanager
def connected(world: World, advice: Callable[[], str] = lambda: "Run the same command again") -> Iterator[World]:
    """Yield the world. A lost process's error becomes one line that ends with `advice`.

    Raises PeerLost if another process died or stopped responding.
    """
    try:
        with world:
            yield world
    except RuntimeError as error:
        if not world.is_peer_loss(error):
            raise
        # the back end's source location and advice are left out
        text = re.sub(r"^\[[^]]*\] ", "", " ".join(str(error).split()))
        text = text.split(". This is", 1)[0].split(". Exception", 1)[0]
        told = _query_store(lambda store: store.add(f"fastft/lost/{socket.gethostname()}", 1))
        raise PeerLost(
            f"another process died or stopped responding ({text}). {advice()}",
            is_told_here=told == 1 if told is not None else world.local_rank == 0,
        ) from None
