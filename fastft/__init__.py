"""Fine-tune CLIP vision transformers on ImageNet-scale data for the fewest GPU-hours."""

import os

import beton_tools  # noqa: F401 - says where compiled code is kept, before any is defined

__version__ = "0.2.0"

# On a CPU, torch's threads and the loader's share the cores: threads that spin while they wait take the cores from those
# that work, and a step takes up to five times as long. Read when OpenMP starts, so before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
