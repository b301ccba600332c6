"""A document as GitHub's Markdown; pictures are files beside it."""

from compress.reporting.document import (
    Block,
    Code,
    Definitions,
    Document,
    Figure,
    Fold,
    Gallery,
    Heading,
    KeyFigures,
    Paragraph,
)
from compress.reporting.escaping import escape_markdown, fence
from compress.reporting.tables import ReportTable


def markdown(document: Document) -> str:
    """The whole report as text."""
    blocks = [f"# {escape_markdown(document.title)}", *map(_block, document.blocks)]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _block(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {escape_markdown(block.text)}"
        case Paragraph():
            return escape_markdown(block.text)
        case KeyFigures():
            return "\n".join(_key_figure(*item) for item in block.items)
        case ReportTable():
            return f"**{escape_markdown(block.caption)}**\n\n{block.markdown()}"
        case Figure():
            return _figure(block)
        case Definitions():
            return "\n".join(
                f"- **{escape_markdown(term)}**: {escape_markdown(text)}"
                for term, text in block.items
            )
        case Code():
            return fence(block.text, "yaml")
        case Gallery():
            return ""  # pictures without number live in the page alone
        case Fold():
            return "\n\n".join([f"## {escape_markdown(block.title)}", *map(_block, block.blocks)])


def _key_figure(number: str, meaning: str, note: str) -> str:
    comparison = f" ({escape_markdown(note)})" if note else ""
    return f"- **{escape_markdown(number)}** {escape_markdown(meaning)}{comparison}"


def _figure(figure: Figure) -> str:
    lines = [f"![{escape_markdown(image.alt)}](<{_target(image.file)}>)" for image in figure.images]
    return "\n".join(lines) + f"\n\n*{escape_markdown(figure.caption)}*"


def _target(file: str) -> str:
    """A path between angle brackets, where only these characters are special."""
    return "".join("\\" + letter if letter in "<>\\" else letter for letter in file)
