"""Optional parts: the command that installs what an extra in pyproject.toml lists.

Messages name the packages themselves. An extra of the name `fastft` would be looked up on the package index, whereas
fastft is installed from a clone, an address or a wheel.
"""

import shlex

# FFCV comes as source only and is built with OpenCV's headers
INSTALL_FFCV = (
    "sudo apt-get install $(cat .ci/ffcv/packages) && "
    "PKG_CONFIG_PATH=$PWD/.ci/ffcv pip install '.[ffcv]', in a clone of fastft"
)
INSTALL_TURBOJPEG = "sudo apt-get install libturbojpeg0 (on Ubuntu: libturbojpeg)"


def requirements_of(extra: str) -> str:
    """Return what `pip install` needs for an extra, such as "'pillow-heif>=0.22'", quoted for a shell.

    Where fastft is not installed, or was before the extra existed, this is the extra of a clone: "'.[heic]'".
    """
    from importlib.metadata import PackageNotFoundError, requires  # imported when a message needs it

    try:
        lines = requires("fastft") or []
    except PackageNotFoundError:
        lines = []
    parts = (line.partition(";") for line in lines)
    found = [
        shlex.quote(name.strip()) for name, _, marker in parts if f'extra == "{extra}"' in marker.replace("'", '"')
    ]
    return " ".join(found) or f"'.[{extra}]'"


def install_extra(extra: str) -> str:
    """Return the command that installs an extra's packages."""
    return f"pip install {requirements_of(extra)}"
