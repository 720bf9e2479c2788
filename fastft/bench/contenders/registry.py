"""The requested loaders, by file in this folder."""

from importlib import import_module

from fastft.bench.contenders import own
from fastft.bench.contenders.measuring import warm
from fastft.bench.contenders.task import Loader, Task
from fastft.bench.harness import Contender, Make, Options

ALWAYS = "ours"  # besides "ffcv" etc. from `options.peers`


def contenders(options: Options, task: Task, how: Make = warm, only: tuple[str, ...] | None = None) -> list[Contender]:
    """Return the loaders that can do the task's work. only: files to take. The user's own loader is always included."""
    files = [file for file in (ALWAYS, *options.peers) if only is None or file in only]
    found = [(file, loader) for file in files for loader in import_module(f"fastft.bench.contenders.{file}").LOADERS]
    if options.own:
        found.append(("own", own.loader(options.own)))
    return [
        contender(file, loader, task, how)
        for file, loader in found
        if task.work in loader.work and (loader.gpu == (task.device != "cpu") or file == ALWAYS)
    ]


def contender(file: str, loader: Loader, task: Task, how: Make = warm) -> Contender:
    arguments = {"file": file, "name": loader.name, "task": task.as_dict(), "options": dict(loader.options)}
    return Contender(loader.name, how, arguments, loader.work[task.work], loader.package or None)
