"""Export to timm, open_clip, safetensors, ONNX and torch.export. Every file is verified with the target library."""

from fastft.export.command import FORMATS, Exported, export_checkpoint

__all__ = ["FORMATS", "Exported", "export_checkpoint"]
