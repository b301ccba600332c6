"""The terminal that the user reads, and how a mistake looks there."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from compress.text import one_line, printable


class _Terminal(Console):
    """A console that shows text as it is: no markup, no emoji codes, nothing that controls it."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)  # rich drops some of it silently

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            own = segment.control is not None
            yield segment if own else segment._replace(text=printable(segment.text))


console = _Terminal(highlight=False, markup=False, emoji=False)


def tell(message: str) -> None:
    """Show what the user did wrong."""
    lines = "\n".join(map(one_line, message.split("\n")))
    console.print(f"error: {lines}", style="red", soft_wrap=True)


def tell_stop(sentence: str) -> None:
    """Show that a command was stopped that can be continued."""
    words = f"{sentence}; run the same command again to continue where it stopped"
    console.print(words, soft_wrap=True)
