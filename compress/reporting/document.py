"""Blocks of text and data that make up a report; each format renders them in its own way.

No block holds markup; each renderer escapes the text it prints.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from compress.reporting.tables import ReportTable


@dataclass(frozen=True)
class Heading:
    """A section, or with level 3 a part of one."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Text without markup; `is_lead` marks the summary, `is_note` small print under a table."""

    text: str
    is_lead: bool = False
    is_note: bool = False


@dataclass(frozen=True)
class KeyFigures:
    """The most important numbers, each (number, meaning, comparison)."""

    items: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Image:
    """A picture: `file` relative to the run directory; `svg` is set for plots drawn here."""

    file: str
    alt: str
    data: bytes
    svg: str = ""


@dataclass(frozen=True)
class Figure:
    """One or more images under one caption; pictures of half the width stand side by side."""

    images: Sequence[Image]
    caption: str
    is_halved: bool = False


@dataclass(frozen=True)
class Definitions:
    """Terms with their meanings."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Code:
    """Preformatted text."""

    text: str


@dataclass(frozen=True)
class Sample:
    """A test image as JPEG, its true class, and what each network says: class, confidence, right.

    `alt` describes it in words.
    """

    jpeg: bytes
    alt: str
    true: str
    said: Sequence[tuple[str, str, bool]]


@dataclass(frozen=True)
class Gallery:
    """Test images under one title; Markdown leaves them out."""

    title: str
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Fold:
    """A section that opens on a click; Markdown and paper show it whole."""

    title: str
    blocks: Sequence["Block"]


Block = (
    Heading | Paragraph | KeyFigures | ReportTable | Figure | Definitions | Code | Gallery | Fold
)


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    blocks: Sequence[Block]
