"""Write, check and look inside FFCV `.beton` files, without torch."""

from beton_tools.errors import UserError

__all__ = ["UserError"]
