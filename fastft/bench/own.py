"""Your own loader: `--contender my_loader.py:make`.

`make` is called with the arguments that it names. It can name folder (str, the JPEGs in class folders), beton (str, the
same JPEGs as a .beton), size, batch, threads and work ("recipe" or "crop"). It returns an iterable of batches, which is
iterated once per round. A batch is a tensor or array with images, or a tuple or list whose first item is one.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from beton_tools.base.errors import UserError

DIFFERENCE = "does what its author wrote"
ARGUMENTS = ("folder", "beton", "size", "batch", "threads", "work")


def make(task: Any, where: str) -> Callable[[], Iterator[int]]:
    function = load(where)
    given = {**task.files, "size": task.size, "batch": task.batch, "threads": task.threads, "work": task.work}
    batches = function(**{name: given[name] for name in inspect.signature(function).parameters})
    return lambda: (len(batch[0] if isinstance(batch, tuple | list) else batch) for batch in batches)


def load(where: str) -> Any:
    """Load the function.

    Raises UserError if `where` is not FILE.py:FUNCTION, if the file or function is missing, or if it wants other
    arguments.
    """
    file, _, name = where.rpartition(":")
    path = Path(file).resolve()
    if path.suffix != ".py" or not path.is_file():
        raise UserError(
            f"--contender {where}: not a loader. Give a Python file and a function, such as my_loader.py:make"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # spawned worker processes import it by this name
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"--contender {where}: {path.name} has no function {name!r}. Name one that it defines")
    if unknown := set(inspect.signature(function).parameters) - set(ARGUMENTS):
        raise UserError(f"--contender {where}: {name} wants {min(unknown)!r}. It may take {', '.join(ARGUMENTS)}")
    return function


def works(where: str) -> tuple[str, ...]:
    """Return what the function can be asked for. Raises UserError like `load`."""
    return ("recipe", "crop") if "work" in inspect.signature(load(where)).parameters else ("recipe",)
