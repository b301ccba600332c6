"""One plot in two forms: PNG for Markdown, and SVG that takes its colours from the page.

Nothing here touches matplotlib's global state, and the same numbers give the same bytes.
"""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind; markers repeat the distinction. The
# first of each is the teacher's.
COLOURS = ("#24292f", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("s", "o", "^", "D", "v", "P", "X", "<", ">", "h")
_INK, MUTED, RULE = "#24292f", "#57606a", "#d0d7de"
DPI = 100
_SIZE = (4.8, 3.6)  # inches: one panel fills a telephone's width with legible letters
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "svg.fonttype": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Plot:
    """One drawing in both forms."""

    png: bytes
    svg: str


@contextmanager
def _own_style(salt: str) -> Iterator[None]:
    """Use our settings inside the block, and restore the user's."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": salt})
        yield


def render(draw: Callable[[Figure, Axes], None], salt: str, height: float = _SIZE[1]) -> Plot:
    """A drawing of usual width.

    Args:
        salt: keeps the identifiers of several drawings in one page apart.
        height: inches.
    """
    with _own_style(salt):
        figure = Figure(figsize=(_SIZE[0], height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure, figure.add_subplot())
        png, svg = _png(figure), io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(svg, format="svg", transparent=True, metadata=nothing)
    return Plot(png, _for_page(svg.getvalue()))


def render_png(draw: Callable[[Figure], None], size: tuple[float, float]) -> bytes:
    """A drawing of `size` inches as PNG alone: pictures of many pixels, several panels."""
    with _own_style(""):
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        return _png(figure)


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return content.getvalue()


def _for_page(svg: str) -> str:
    """The `<svg>` element alone, sized by the page and coloured by its style sheet."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", element, count=1)
    # Names of groups repeat from drawing to drawing; nothing refers to them.
    element = re.sub(r'<g id="[^"]*"', "<g", element)
    for place, colour in enumerate(COLOURS[1:], 1):
        element = element.replace(colour, f"var(--series-{place})")
    for colour, name in ((_INK, "ink"), (MUTED, "muted"), (RULE, "rule")):
        element = element.replace(colour, f"var(--{name})")
    return element.strip()
