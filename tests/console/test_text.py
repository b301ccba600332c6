"""Text of users in terminals, logs and pages: visible, never obeyed."""

from pathlib import Path

import pytest
from rich.table import Table as RichTable

from compress.console import messages as speaking
from compress.console.ending import exit_code
from compress.console.messages import log, log_to
from compress.console.terminal import console, print_error
from compress.errors import UserError
from compress.reporting.document import Code, Document, Heading, Paragraph
from compress.reporting.html import html
from compress.reporting.markdown import markdown
from compress.reporting.tables import Column, ReportTable
from compress.text import dotted, is_line, one_line, printable, short_repr

# A window title, a cleared screen, a line that hides, a turned line, what is no character.
HOSTILE = "a\x1b]0;title\x07\x1b[2Jb\rc\u202egnp\x9bz\u2028\udcff[red]x[/][/]:red_circle:"
VISIBLE = r"a\x1b]0;title\x07\x1b[2Jb\rc\u202egnp\x9bz\u2028\udcff[red]x[/][/]:red_circle:"


def _is_harmless(text: str) -> bool:
    return text.replace("\n", "").replace("\t", "").replace("\xa0", "").isprintable()


def test_what_controls_is_visible_and_the_rest_stays() -> None:
    assert printable(HOSTILE) == VISIBLE
    for text in (
        "Straße 猫 👩\u200d🔬",
        "97.3\xa0%",
        "two\nlines\tof text",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    ):
        assert printable(text) == text
    assert printable(VISIBLE) == VISIBLE


def test_values_in_messages_are_one_short_line() -> None:
    assert one_line("a\nb\tc") == r"a\nb\tc"
    assert len(short_repr("x" * 10**6)) < 300
    assert "(1,000,002 characters)" in short_repr("x" * 10**6)
    assert dotted("a", 0, "two words", "\x1b") == r"a.0.'two words'.'\x1b'"
    assert [is_line(t) for t in ("cat", "\x1b", "", "a\nb", "a\u2028b", "\udcff")] == [
        True, True, False, False, False, False
    ]  # fmt: skip


def test_the_terminal_and_the_log_show_text_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with log_to(tmp_path / "log.txt"):
        log(HOSTILE)
    print_error(HOSTILE)
    console.print(ReportTable([Column(HOSTILE)], [[HOSTILE]], HOSTILE).rich(HOSTILE))
    table = RichTable(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    console.print(table)
    shown_text = capsys.readouterr().out
    assert shown_text.split("\n")[:2] == [VISIBLE, f"error: {VISIBLE}"]
    assert shown_text.count(r"\x07") == 9
    assert _is_harmless(shown_text)
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").endswith(f"{VISIBLE}\n")


def test_a_bar_may_have_any_name() -> None:
    with speaking.bar(HOSTILE, 2) as advance:
        advance(note=HOSTILE)


def test_an_error_on_stderr_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        raise UserError(HOSTILE + "x" * 10**6)

    assert exit_code(command) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {VISIBLE}") and len(printed) < 5000
    assert _is_harmless(printed)


def test_reports_show_text_as_it_is() -> None:
    blocks = (Heading(HOSTILE), Paragraph(HOSTILE), Code(HOSTILE))
    page = Document(HOSTILE, (*blocks, ReportTable([Column(HOSTILE)], [[HOSTILE]], HOSTILE)))
    for text in (markdown(page), html(page)):
        assert _is_harmless(text)
        text.encode("utf-8")
    assert f"<title>{VISIBLE}</title>" in html(page)
