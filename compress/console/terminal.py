"""The user's terminal: every command prints through it."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from compress.text import one_line, printable


class _Terminal(Console):
    """A console that prints text literally: no markup, no emoji codes, no control characters."""

    def render_str(self, text: str, **style: Any) -> Text:
        return super().render_str(printable(text), **style)  # rich drops some of it silently

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            is_control = segment.control is not None
            yield segment if is_control else segment._replace(text=printable(segment.text))


console = _Terminal(highlight=False, markup=False, emoji=False)


def print_error(message: str) -> None:
    """Print an error message in red."""
    lines = "\n".join(map(one_line, message.split("\n")))
    console.print(f"error: {lines}", style="red", soft_wrap=True)


def print_stop(sentence: str) -> None:
    """Print that a command was stopped and can be continued."""
    message = f"{sentence}; run the same command again to continue where it stopped"
    console.print(message, soft_wrap=True)
