"""Build with the recipes of rcp/ inside the package as fastft/rcp, and with absolute links in the published metadata.

setuptools cannot map a folder outside a package into it while it also finds the packages by itself. Everything else is
in pyproject.toml.
"""

import os
import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# the repository's address, such as https://github.com/OWNER/fastft, which the release workflow knows; empty: links stay relative
REPOSITORY = os.environ.get("FASTFT_REPOSITORY", "").rstrip("/")


class BuildWithRecipes(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # an editable install reads rcp/ where it is
            shutil.copytree("rcp", Path(self.build_lib) / "fastft" / "rcp", dirs_exist_ok=True)


def description() -> str:
    """Return README.md, with links to the repository where its address is known."""
    text = Path("README.md").read_text(encoding="utf-8")
    if not REPOSITORY:
        return text
    pages = re.sub(r"(\]\()(?![a-z]+:|#)", rf"\1{REPOSITORY}/blob/HEAD/", text)
    return re.sub(r"((?:src|srcset)=\")(?![a-z]+:)", rf"\1{REPOSITORY}/raw/HEAD/", pages)


def links() -> dict[str, str]:
    pages = {
        "Homepage": "",
        "Documentation": "/tree/HEAD/docs",
        "Changelog": "/blob/HEAD/CHANGELOG.md",
        "Issues": "/issues",
    }
    return {name: REPOSITORY + page for name, page in pages.items()} if REPOSITORY else {}


setup(
    cmdclass={"build_py": BuildWithRecipes},
    long_description=description(),
    long_description_content_type="text/markdown",
    project_urls=links(),
)
