"""These tests run under a CUDA card that only answers: `make test-fake-gpu`, elsewhere they are not collected."""

import os

collect_ignore_glob = [] if "FASTFT_FAKE_GPU" in os.environ else ["test_*.py"]
