"""Files of a user's data set: only files are opened, and no listing leads out of the data set."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from compress.errors import UserError

_MOST_WAYS = 100  # to one folder, through links
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def require_file(path: Path, named_in: Path | None = None) -> None:
    """Refuse what is no file: opening a named pipe would wait for ever.

    Args:
        named_in: the listing that names the file, for the message.

    Raises:
        UserError: there is nothing of that name, or something else.
    """
    source = f"; {named_in} names it." if named_in else "."
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # no name of a file has a NUL
        raise UserError(f"{path} not found{source}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}){source}") from None
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise UserError(f"{path} is {kind}, expected a file{source}")


def read_listing(path: Path) -> str:
    """The text of a file in UTF-8, without a byte order mark.

    Raises:
        UserError: there is no such file, or it is no such text.
    """
    require_file(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text ({error}).") from None


def inside(root: Path, path: Path, entry: str, listing: Path) -> Path:
    """The path that an entry of a listing leads to, if it lies in the data set.

    Only the name is judged: a link inside a data set may lead anywhere.

    Raises:
        UserError: the name leads out of `root`.
    """
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root)):
        raise UserError(
            f"{listing} names {entry[:80]!r}, which is outside of the data set's folder {root}; "
            "move the file there and correct the entry."
        )
    return path


def folders_below(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder and the names of its entries that are no folders; links are followed.

    A link to a folder that it lies in is not: there is nothing new behind it.

    Raises:
        UserError: links multiply a folder, as two to each of the next ones do without end.
    """
    ways: Counter[str] = Counter()
    waiting: list[tuple[str, frozenset[str]]] = [(str(root), frozenset())]
    while waiting:
        at, above = waiting.pop()
        place = os.path.realpath(at)
        if place in above:
            continue
        ways[place] += 1
        if ways[place] > _MOST_WAYS:
            raise UserError(
                f"{root}: links lead to {place} in more than {_MOST_WAYS} ways; remove some"
            )
        try:
            entries = [(entry.name, entry.is_dir()) for entry in os.scandir(at)]
        except OSError:  # what cannot be read is not there, as for `os.walk`
            continue
        yield at, [name for name, is_folder in entries if not is_folder]
        inner = above | {place}
        waiting += [(os.path.join(at, name), inner) for name, is_folder in entries if is_folder]
