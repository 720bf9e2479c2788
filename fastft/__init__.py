"""Fine-tune CLIP vision transformers on ImageNet-scale data for the fewest GPU-hours."""

__version__ = "0.1.0"
