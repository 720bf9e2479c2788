"""Run torchrun with the exit codes of `fastft` (2 bad input, 1 a crash, 75 try again) and without its tracebacks.

    python -m fastft.train.launch --nproc-per-node 8 train RECIPE ...

The options before the subcommand are torchrun's. On its own, torchrun exits with 1 whenever a process fails.
SIGUSR1, SIGUSR2 and SIGXCPU are forwarded to the processes, which may take any time to save. After SIGTERM torchrun
kills them in 30 seconds.
"""

import logging
import os
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser, run

from fastft.machine.distributed import CHECK_NODES, LAUNCHER, WAITING_SECONDS
from fastft.machine.exits import EXIT_REQUEUE

PROGRAM = "fastft.cli"
NO_RESTARTS = (
    "warning: --max-restarts starts all processes again after any error, also after bad input. Leave it out, and run "
    "the same command again on exit code 75, as rcp/slurm/train.sbatch does"
)
ONE_NODE = ("1", "1:1")  # values of --nnodes
# Exit codes of a process that torchrun ended with SIGTERM, before and after `fastft` handles signals
ENDED = (-signal.SIGTERM, 128 + signal.SIGTERM)
FORWARDED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fastft` in every process, and return the most informative of their exit codes: 2, then 1, then 75."""
    options, command = split_command(sys.argv[1:] if argv is None else argv)
    args = get_args_parser().parse_args([*options, "--module", PROGRAM, *command])
    if args.nnodes in ONE_NODE:  # otherwise torchrun tries for ever to reach a host name that nothing can look up
        args.local_addr = args.local_addr or "localhost"
    # torchrun's log repeats the errors that the processes printed
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    for forwarded in FORWARDED:
        signal.signal(forwarded, lambda number, frame: _forward(number))
    os.environ[LAUNCHER] = str(os.getpid())
    announce_waiting(args)
    if args.max_restarts:
        print(f"fastft launch: {NO_RESTARTS}", file=sys.stderr, flush=True)
    try:
        run(args)
    except ChildFailedError as error:
        failed = {rank: failure for rank, failure in error.failures.items() if failure.exitcode not in ENDED}
        codes = {failure.exitcode for failure in failed.values()}
        if codes and max(codes) < 0 and not is_alone(args):
            # the others would have said this and exited with EXIT_REQUEUE, but torchrun was faster and ended them
            rank, failure = next(iter(failed.items()))
            how = f"rank {rank} was ended by {failure.signal_name()}"
            print(
                f"fastft launch: another process died or stopped responding ({how}). Run the same command again",
                file=sys.stderr, flush=True,
            )  # fmt: skip
            return EXIT_REQUEUE
        return exit_code(codes)
    except SignalException as stop:
        return 130 if stop.sigval == signal.SIGINT else EXIT_REQUEUE
    return 0


def is_alone(args: Namespace) -> bool:
    return args.nnodes in ONE_NODE and args.nproc_per_node == "1"


def announce_waiting(args: Namespace) -> None:
    """Print one line if this node has no process after WAITING_SECONDS, because torchrun itself waits silently for the others."""
    if args.nnodes in ONE_NODE:
        return
    place = args.rdzv_endpoint or f"{args.master_addr}:{args.master_port}"

    def say() -> None:
        if not _children():
            text = f"fastft launch: has waited {WAITING_SECONDS:.0f} s for the other nodes at {place}. {CHECK_NODES}"
            print(text, file=sys.stderr, flush=True)

    timer = threading.Timer(WAITING_SECONDS, say)
    timer.daemon = True
    timer.start()


def split_command(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split at the first subcommand: (torchrun's options, `fastft`'s command line)."""
    subcommands = [i for i, word in enumerate(argv) if word in ("train", "eval", "sweep")]
    if not subcommands:
        print("fastft launch: no subcommand. End with: train RECIPE ...", file=sys.stderr)
        raise SystemExit(2)
    return list(argv[: subcommands[0]]), list(argv[subcommands[0] :])


def exit_code(codes: set[int]) -> int:
    """Return the launcher's exit code.

    A process that failed by itself determines it: the others only lost a peer (75).
    """
    return next((code for code in (2, 1, EXIT_REQUEUE) if code in codes), 1)


def _forward(number: int) -> None:
    for child in _children():
        os.kill(child, number)


def _children() -> list[int]:
    return [int(child) for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8").split()]


if __name__ == "__main__":
    sys.exit(main())
