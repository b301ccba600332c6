"""Joining the processes that torchrun started, and ending them with one message.

torchrun ends the remaining processes as soon as one has ended in failure, so the one that says why
must be done before any of them leaves.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from compress.console.ending import exit_code
from compress.console.terminal import print_error, print_stop
from compress.distributed.collectives import is_main_process, on_main_process, world_size
from compress.errors import UserError

Request = TypeVar("Request")
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# The first process does some stages alone, for hours.
_LONGEST_WAIT = timedelta(days=14)
# Seconds that a process that fails leaves it to the first to say so, which may fail of the same.
_PATIENCE = 5.0
_board: Any = None  # a store, where processes leave word that can no longer meet


def launch(read: Callable[[], Request], command: Callable[[Request], int]) -> int:
    """Run a command that can be continued in each of the processes that torchrun started.

    Args:
        read: reads what the user asks for; the first process does.
        command: gets that, returns the exit code.

    Returns:
        The exit code; of several processes that fail, one reports why.
    """
    with _joined_processes():
        return exit_code(
            lambda: command(on_main_process(read)),
            lambda message: say_once(lambda: print_error(message)),
            lambda sentence: say_once(lambda: print_stop(sentence)),
        )


@contextmanager
def _joined_processes() -> Iterator[None]:
    """Join the processes that torchrun started, for the block; a process alone does nothing.

    What is on the CPU is exchanged by gloo, what is on a GPU by nccl. Where another process has
    said why it failed, this one ends without a word.
    """
    if distributed.is_initialized() or not _among_several():
        yield
        return
    global _board
    gpu = torch.cuda.is_available() and distributed.is_nccl_available()
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=_LONGEST_WAIT)
    _board = _open_board()
    try:
        yield
    except RuntimeError:
        # So end exchanges with a process that has left.
        if _is_said():
            raise SystemExit(2) from None
        raise
    finally:
        _board = None
        distributed.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """The device that this process takes: of several on a machine, each a GPU of its own.

    Raises:
        UserError: there are more processes than GPUs, or one GPU was named for all.
    """
    if device.type != "cuda" or world_size() == 1:
        return device
    if device.index is not None:
        raise UserError(f"several processes cannot share {device}; give --device cuda")
    number, available = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= available:
        raise UserError(f"there are more processes than GPUs: this machine has {available}")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def usable_device(wanted: str | None) -> torch.device:
    """The device of `--device`, by default a GPU where there is one; it has been tried.

    Raises:
        UserError: it cannot be used here.
    """
    name = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = own_device(torch.device(name))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here: {reason}") from None
    return device


def say_once(say: Callable[[], None], where: str = "console") -> None:
    """Let exactly one of the processes that fail say why: the first, if it is among them.

    Returns when it has been said there, so that the caller may leave.
    """
    if _board is None:
        say()
    elif not is_main_process() and _is_said(where, _PATIENCE):
        return
    elif _board.add(f"speakers, {where}", 1) == 1:
        say()
        _board.set(f"said, {where}", "yes")
    else:
        _is_said(where, _PATIENCE)


def _is_said(where: str = "console", patience: float = 0.5) -> bool:
    """Whether a process has said why it failed, or does within `patience` seconds."""
    end = time.monotonic() + patience
    # The store's own wait prints a warning where it waited in vain.
    while not (said := bool(_board.check([f"said, {where}"]))) and time.monotonic() < end:
        time.sleep(0.02)
    return said


def _among_several() -> bool:
    known = all(name in os.environ for name in _VARIABLES)
    return known and distributed.is_available() and int(os.environ["WORLD_SIZE"]) > 1


def _open_board() -> Any:
    """Held by torchrun itself, so that it outlives any of the processes."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = distributed.TCPStore(address, port, is_master=False)  # type: ignore[attr-defined]
    return distributed.PrefixStore(f"compress/{attempt}", store)  # type: ignore[attr-defined]
