"""Tests, in packages as the code. This module is imported before any test imports PyTorch."""

import os

# OpenMP's threads wait for each other by spinning, which makes a training five times slower where other processes use the cores
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

EXTENT = float(os.environ.get("FASTFT_EXTENT", "1"))  # factor for the slow tests that try cases at random
# Seconds after which no further slow test is started, for CI. Which files are tried first then differs from run to run.
SLOW_SECONDS = float(os.environ.get("FASTFT_SLOW_SECONDS", "inf"))
