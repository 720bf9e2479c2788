"""Export of trained models to timm, open_clip, safetensors, ONNX and torch.export; every file is verified with that library."""

from fastft.export.command import FORMATS, Exported, export_checkpoint

__all__ = ["FORMATS", "Exported", "export_checkpoint"]
