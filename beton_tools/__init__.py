"""Write, verify and inspect FFCV `.beton` files, without torch."""

from beton_tools.base.errors import UserError
from beton_tools.base.jit_cache import use_own_cache

__version__ = "0.3.0"  # also fastft's version

use_own_cache()  # before any compiled function is defined

__all__ = ["UserError"]
