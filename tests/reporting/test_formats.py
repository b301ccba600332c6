"""How numbers are printed."""

import pytest

from compress.reporting import formats
from compress.reporting.escaping import escape_html, escape_markdown, fence
from compress.reporting.tables import Column, ReportTable


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (formats.count(1234567), "1,234,567"),
        (formats.decimal(-1234.5), "\N{MINUS SIGN}1,234.50"),
        (formats.signed(0.5), "+0.50"),
        (formats.signed(-0.001), "0.00"),
        (formats.percent(97.333), "97.33\N{NO-BREAK SPACE}%"),
        (formats.scientific(0.0), "0"),
        (formats.scientific(1.234e-6), "1.23e-06"),
        (formats.millions(41_220_000), "41.22"),
        (formats.megabytes(31_000), "0.031"),
        (formats.milliseconds(0.0723), "0.072"),
        (formats.mean_and_deviation([90.0, 92.0]), "91.00 ± 1.41"),
        (formats.mean_and_deviation([90.0]), "90.00"),
        (formats.duration(3723.4), "1 h 02 min 03 s"),
        (formats.duration(59.97), "1 min 00 s"),
        (formats.duration(3.25), "3.2 s"),
        (formats.arguments({"name": "simkd", "reduction": 2}), "simkd (reduction 2)"),
        (formats.readable({"a": [1000, True], "b": None}), "a 1,000, yes, b \N{EN DASH}"),
    ],
)
def test_printed_numbers(printed: str, expected: str) -> None:
    assert printed == expected


def test_what_is_missing_is_a_dash() -> None:
    printers = (formats.count, formats.decimal, formats.percent, formats.scientific)
    assert {printer(None) for printer in printers} == {formats.MISSING}


def test_markdown_stands_for_itself() -> None:
    assert escape_markdown("a|b *c* `d` <e> [f](g)") == ("a\\|b \\*c\\* \\`d\\` \\<e\\> \\[f\\](g)")
    assert escape_markdown("top1_percent _x_") == "top1_percent \\_x\\_"
    assert escape_markdown("1. one\n- two") == "1\\. one - two"
    assert escape_markdown("+1.00 ± 0.5") == "+1.00 ± 0.5"


def test_a_fence_is_longer_than_what_it_holds() -> None:
    assert fence("a\n````\nb").startswith("`````\n")


def test_html_is_escaped_in_text_and_attributes() -> None:
    assert escape_html('<a href="x">\'&') == "&lt;a href=&quot;x&quot;&gt;&#x27;&amp;"


def test_a_table_refuses_a_row_of_another_length() -> None:
    with pytest.raises(ValueError, match="2 cells for 1 columns"):
        ReportTable([Column("a")], [["1", "2"]])
