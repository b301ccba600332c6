"""The terminal that the user reads, and how a mistake looks there."""

from rich.console import Console

console = Console(highlight=False)


def tell(message: str) -> None:
    """Show what the user did wrong."""
    console.print(f"error: {message}", style="red", markup=False, soft_wrap=True)


def tell_stop(sentence: str) -> None:
    """Show that a command was stopped that can be continued."""
    words = f"{sentence}; run the same command again to continue where it stopped"
    console.print(words, markup=False, soft_wrap=True)
