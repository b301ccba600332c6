"""Commands without the parts that take most of their time, where a test is about another part."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from compress.reporting import by_class, plots
from compress.reporting.drawing import Plot
from tests.export.tracing import traced_exports

NOT_DRAWN = Plot(png=b"", svg="<svg></svg>")


@contextmanager
def quick_commands() -> Iterator[None]:
    """Inside the block networks are exported by the older tracer, and figures are not drawn."""
    with traced_exports(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "render", lambda *_, **__: NOT_DRAWN)
        patch.setattr(by_class, "render_png", lambda *_: b"")
        yield
