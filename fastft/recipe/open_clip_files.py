"""open_clip's model configurations and pretrained tags, without importing open_clip, which takes seconds."""

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from beton_tools.base.errors import UserError


def open_clip_folder() -> Path:
    """Find the installed package without importing it."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise UserError("open_clip is not installed. Run: pip install open_clip_torch")
    return Path(spec.origin).parent


@cache
def open_clip_tags() -> Any:
    """Import open_clip's pretrained tags into an empty package."""
    package = ModuleType("open_clip_tags")
    package.__path__ = [str(open_clip_folder())]
    sys.modules[package.__name__] = package
    return importlib.import_module(f"{package.__name__}.pretrained")
