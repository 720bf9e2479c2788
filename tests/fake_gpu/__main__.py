"""`python -m tests.fake_gpu [PYTEST ARGUMENTS]`: build the card for this Python's PyTorch, and run the tests under it.

`python -m tests.fake_gpu ways OUT.json` records what a step asks of the card (ways.py).
"""

import os
import sys
import tempfile
from pathlib import Path

from tests.fake_gpu.build import HERE, build, variables

if __name__ == "__main__":
    folder = build(Path(tempfile.mkdtemp(prefix="fake-gpu-")))
    environment = os.environ | variables(folder) | {"FASTFT_FAKE_GPU": str(folder)}
    if sys.argv[1:2] == ["ways"]:
        arguments = ["tests.fake_gpu.ways", *sys.argv[2:]]
    else:
        arguments = ["pytest", "-p", "no:cacheprovider", *(sys.argv[1:] or [str(HERE)])]
    os.execve(sys.executable, [sys.executable, "-m", *arguments], environment)
