"""Measured speeds of the step's candidates, in the user's cache directory: one JSON file per device, model and micro-batch."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastft.model.attention import ATTENTION_KERNELS
from fastft.recipe.rules import LIST, NUMBER_OR_NULL, OBJECT, TEXT, check_keys
from fastft.train.step_choice import MODES, StepChoice, StepTrial

MAX_BYTES = 1 << 20
TRIAL = {"mode": TEXT, "attention": TEXT, "milliseconds": NUMBER_OR_NULL}


def cache_file(key: Mapping[str, Any]) -> Path:
    """The file of a key; `XDG_CACHE_HOME` names the user's cache directory.

    Raises:
        RuntimeError: the user has no home directory.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=8).hexdigest()
    return home / "fastft" / "steps" / f"{digest}.json"


def load_trials(key: Mapping[str, Any], say: Callable[[str], None]) -> list[StepTrial] | None:
    """The trials stored for a key; None if there are none, or if the file is damaged, which `say` reports."""
    with suppress(RuntimeError, OSError):
        path = cache_file(key)
        if not path.is_file():
            return None
        try:
            return _read(path, key)
        except (ValueError, RecursionError) as error:
            say(f"ignoring {path}, which is damaged ({' '.join(str(error).split())[:100]}); measuring again")
    return None


def store_trials(key: Mapping[str, Any], trials: Sequence[StepTrial]) -> None:
    """Store trials. A directory that cannot be written, or a full disk, only means measuring again next time."""
    with suppress(RuntimeError, OSError):
        path = cache_file(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        # a name of this process, because another training may write the same file
        partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
        try:
            partial.write_text(json.dumps({"key": key, "trials": [t.as_dict() for t in trials]}, indent=1))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _read(path: Path, key: Mapping[str, Any]) -> list[StepTrial]:
    """Raises ValueError if the file is not as `store_trials` writes it."""
    if path.stat().st_size > MAX_BYTES:
        raise ValueError("too large")
    content = json.loads(path.read_bytes())
    check_keys("it", content, {"key": OBJECT, "trials": LIST})
    if content["key"] != json.loads(json.dumps(key)):
        raise ValueError("it is for another model or device")
    return [_trial(values) for values in content["trials"]]


def _trial(values: Any) -> StepTrial:
    check_keys("a trial", values, TRIAL)
    choice = StepChoice(values["mode"], values["attention"])
    if choice.mode not in MODES or choice.attention not in ("auto", *ATTENTION_KERNELS):
        raise ValueError(f"unknown candidate {choice}")
    return StepTrial(choice, values["milliseconds"], values.get("reason"))
