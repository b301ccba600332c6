"""Escape text from recipes and results for Markdown and HTML."""

import html
import re

from compress.text import printable

# An underscore inside a word is no emphasis in GitHub's Markdown, and stays readable.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~$&#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# What makes a list, a quotation or a heading, where a line begins with it.
_MARKDOWN_START = re.compile(r"^([+-]|\d+[.)])(?=\s)")


def escape_markdown(text: str) -> str:
    """One line of text, every character standing for itself."""
    line = " ".join(printable(text).split("\n"))
    escaped = _MARKDOWN.sub(lambda match: "\\" + match.group(), line)
    return _MARKDOWN_START.sub(lambda match: _escape_last(match.group()), escaped)


def fence(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{printable(text).rstrip()}\n{fence}"


def escape_html(text: str) -> str:
    """Text for an element or a quoted attribute."""
    return html.escape(printable(text), quote=True)


def _escape_last(start: str) -> str:
    return f"{start[:-1]}\\{start[-1]}"
