"""`python -m fastft`, for where the command `fastft` is not on PATH."""

import sys

from fastft.cli import main

sys.exit(main())
