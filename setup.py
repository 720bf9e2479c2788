"""Build with the recipes of rcp/ inside the package as fastft/rcp; everything else is in pyproject.toml.

setuptools cannot map a folder outside a package into it while it also finds the packages by itself.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # an editable install reads rcp/ where it is
            shutil.copytree("rcp", Path(self.build_lib) / "fastft" / "rcp", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithRecipes})
