"""One hostile case: it loads, or is refused in words; nothing else may happen."""

import os
import random
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from compress.errors import UserError
from tests.hostile.datasets import LAYOUTS, SECRET
from tests.hostile.weights import hostile_weights

_FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
_breaches: list[str] | None = None  # what the code under attack did; None: nobody watches


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Python's audit hook: no program may start, and no secret, device or pipe be opened."""
    if _breaches is None:
        return
    problem = event if event in _FORBIDDEN else ""
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.fsdecode(arguments[0])
        if Path(path).name in (SECRET, "hostname") or _would_wait(path):
            problem = f"opened {path}"
    if problem:
        _breaches.append(problem)
        raise AssertionError(problem)  # before it is done: a pipe would be waited for for ever


def _would_wait(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or os.path.realpath(path) == "/dev/zero"


sys.addaudithook(_watch)


def attack(layout: str, seed: int, folder: Path) -> tuple[str, str]:
    """Run a case in an empty folder.

    Returns:
        Its kind, and `loaded` or the sentence that refuses it.
    """
    global _breaches
    draw = random.Random(f"{layout} {seed}")
    root = folder / "data" / "set"
    root.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(folder / SECRET)
    (folder / "data" / SECRET).write_bytes((folder / SECRET).read_bytes())
    if layout == "weights":
        kind, read = hostile_weights(root, draw)
    else:
        kind, read = LAYOUTS[layout](root, draw)
    _breaches = []
    try:
        outcome = _outcome(read, root)
        assert not _breaches, f"{layout} {seed} ({kind}): {_breaches}"
    finally:
        _breaches = None
    assert not list(folder.rglob("harmed")), f"{layout} {seed} ({kind}) ran code"
    return kind, outcome


def _outcome(read: Callable[[], Any], root: Path) -> str:
    try:
        for path in read() or ():
            assert Path(os.path.abspath(path)).is_relative_to(root), f"{path} is outside of {root}"
    except UserError as error:
        assert str(error) and len(str(error).splitlines()) == 1, f"no sentence: {error}"
        return str(error)
    return "loaded"
