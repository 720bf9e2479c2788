"""Hide every package that FASTFT_PACKAGES does not name from this Python, as on a machine where it is not installed."""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.metadata import packages_distributions

allowed = set(os.environ["FASTFT_PACKAGES"].split())
installed = packages_distributions()


class Hide(MetaPathFinder):
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        owners = [owner.lower().replace("_", "-") for owner in installed.get(name, ())]
        if owners and allowed.isdisjoint(owners):
            raise ModuleNotFoundError(f"No module named {name!r}, as it is not carried", name=name)


sys.meta_path.insert(0, Hide())
