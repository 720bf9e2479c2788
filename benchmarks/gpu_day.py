"""Run everything that only a GPU can show, and write one JSON file per stage.

Stages, each with a deadline of at most 9 minutes (43 in all); a stage that fails does not stop the next ones:
    kernels    augmentation kernels import, link, load; 10,000 random plans, bytes equal to the CPU back end
    sanitizer  compute-sanitizer: memcheck, racecheck, synccheck, initcheck
    loader     loader to GPU equals the CPU for 200 batches; flat memory; no synchronisation in 20 training steps
    steps      variants of the training step: precision, residual, attention kernel, compilation, micro-batch
    curves     loss curves of fp32, bf16, fp16 and half-precision weights; automatic micro-batch under 16 and 32 GiB
    trainer    the trainer with resume, evaluation and checkpoint; augmentation against a copy of its bytes

Run: python benchmarks/gpu_day.py [STAGE ...] [--out benchmarks/results/gpu] [--dry-run]
docs/gpu-day.md says what it needs and what to send back.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from beton_tools.base.errors import UserError
from fastft.bench.gpu_day import STAGES, run_stages


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"default: all of {', '.join(STAGES)}")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/gpu"), help="folder for the JSON files"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="the same code with tiny shapes, also without a GPU"
    )
    args = parser.parse_args()
    try:
        return int(run_stages(args.stages, args.out, args.dry_run, Console()) > 0)
    except UserError as error:
        print(f"gpu_day: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
