"""Hide every package that FASTFT_PACKAGES does not name from this Python, as on a machine where it is not installed."""

import os
import sys
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
from typing import Any

allowed = set(os.environ["FASTFT_PACKAGES"].split())
installed = packages_distributions()


class Hide(PathFinder):
    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        owners = [owner.lower().replace("_", "-") for owner in installed.get(name, ())]
        return None if owners and allowed.isdisjoint(owners) else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Hide
