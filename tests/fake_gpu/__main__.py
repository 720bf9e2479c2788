"""`python -m tests.fake_gpu [PYTEST ARGUMENTS]`: build the card for this Python's PyTorch, and run the tests under it."""

import os
import sys
import tempfile
from pathlib import Path

from tests.fake_gpu.build import HERE, build, variables

if __name__ == "__main__":
    folder = build(Path(tempfile.mkdtemp(prefix="fake-gpu-")))
    environment = os.environ | variables(folder) | {"FASTFT_FAKE_GPU": str(folder)}
    arguments = sys.argv[1:] or [str(HERE)]
    os.execve(sys.executable, [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments], environment)
