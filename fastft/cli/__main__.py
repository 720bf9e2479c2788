"""`python -m fastft.cli`, as torchrun starts it."""

import os
import sys
from typing import NoReturn

from beton_tools.base import torchrun
from fastft.cli import main


def _exit(code: int) -> NoReturn:
    """End the process with `code`.

    After an error in a distributed run the process group is not destroyed, because that could wait for a process that
    no longer exists. At a normal interpreter exit its threads sometimes abort the process (exit code 134).
    """
    if code != 0 and torchrun.world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    _exit(main())
