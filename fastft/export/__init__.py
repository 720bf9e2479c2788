"""Trained models for other libraries: timm, open_clip, safetensors, ONNX. Each file is checked by that library."""

from fastft.export.command import FORMATS, Exported, export_checkpoint

__all__ = ["FORMATS", "Exported", "export_checkpoint"]
