"""The whole report of complete, partial and hostile run directories."""

import io
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from compress.reporting import formats, terminal_tables, write_report

Make = Callable[..., Path]
Change = Callable[[Path, str, Callable[[Any], None]], None]
VOID = {"meta", "img", "br", "path", "use", "rect"}


class Page(HTMLParser):
    """Text, references and the balance of tags of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self._attributes(attributes)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._attributes(attributes)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def _attributes(self, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in {"src", "href", "xlink:href", "srcset", "data", "action"}:
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for item in value.values():
            yield from numbers(item)
    elif isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def spellings(value: float) -> set[str]:
    """Every way in which the report may print a number."""
    printers = (formats.decimal, formats.signed, formats.scientific, formats.milliseconds)
    printers += (formats.megabytes,)
    exact = {formats.count(value)} if float(value).is_integer() else set()
    return {
        *exact,
        *(printer(value) for printer in printers),
        formats.decimal(value, 1),
        formats.readable(value),
    }


def test_every_number_of_the_json_is_in_the_markdown(complete: Path) -> None:
    folder = complete
    text = (folder / "report.md").read_text()
    words = set(re.split(r"[ \u00a0|()*\n;]+", text.replace(", ", " ").replace(".\n", "\n")))
    found = list(numbers(json.loads((folder / "report.json").read_text())))
    assert len(found) > 150
    missing = [value for value in found if not spellings(value) & words]
    assert not missing


def test_result_table_by_hand(complete: Path) -> None:
    folder = complete
    text = (folder / "report.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| simkd |"))
    # Means 97 and 92 of 300 images: sqrt(.97 * .03 / 300 + .92 * .08 / 300) = 1.85 points.
    assert "97.00 ± 0.47 (2 trials)" in row
    assert "+5.00 ± 1.85 (higher, unpaired)" in row
    kd = next(line for line in text.splitlines() if "kd (recommended)" in line)
    # 94 against 92: 2 points are within 2 * 2.08.
    assert "+2.00 ± 2.08 (not distinguishable, unpaired)" in kd
    assert "| resnet20 (teacher) | 97.67 | 0.87 | 98.00 | +5.67 ± 1.79 (higher, unpaired) |" in text


def test_rows_are_in_reading_order(complete: Path) -> None:
    folder = complete
    networks = json.loads((folder / "report.json").read_text())["values"]["networks"]
    assert [row["label"] for row in networks] == ["teacher", "none", "kd", "crd-14", "simkd"]
    assert networks[1]["difference_to_student_alone"] is None


def test_only_measured_values_differ_between_two_runs(make_run: Make) -> None:
    records = []
    for folder in (make_run("one"), make_run("other/place", slow=1.7)):
        write_report(folder)
        records.append(json.loads((folder / "report.json").read_text()))
    assert list(records[0]) == ["values", "measured"]
    assert records[0]["values"] == records[1]["values"]
    assert records[0]["measured"] != records[1]["measured"]
    assert "/" + "one" not in json.dumps(records[0])


def test_the_same_run_gives_the_same_bytes(make_run: Make) -> None:
    folders = [make_run("a"), make_run("b")]
    pages = [write_report(folder).read_bytes() for folder in folders]
    assert pages[0] == pages[1]
    plots = [sorted((folder / "figures").iterdir()) for folder in folders]
    assert [p.name for p in plots[0]] == [p.name for p in plots[1]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*plots, strict=True))


def test_the_page_is_whole_and_refers_to_nothing_outside(complete: Path) -> None:
    source = (complete / "report.html").read_text()
    page = Page(source)
    assert page.open == []
    assert all(reference.startswith(("#", "data:image/")) for reference in page.references)
    assert {reference[1:] for reference in page.references if reference[0] == "#"} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "script" not in page.tags and "link" not in page.tags
    assert not re.search(r"@import|url\((?!#)", source)
    assert page.tags.count("svg") == 7 and page.tags.count("img") == 1


def test_pictures_outside_their_stage_are_left_out(complete: Path) -> None:
    folder = complete
    assert "secret" not in (folder / "report.md").read_text()


def test_pictures_of_the_markdown_exist(complete: Path) -> None:
    folder = complete
    files = re.findall(r"\]\(<(.+?)>\)", (folder / "report.md").read_text())
    assert len(files) == 8
    assert all((folder / file).is_file() for file in files)


@pytest.mark.parametrize(
    ("stages", "sentences"),
    [
        ((), ["No student has been trained yet", "Neither the teacher nor the distill stage"]),
        (("teacher",), ["The distill stage has not run", "The fuse stage has not run"]),
        (("teacher", "distill"), ["The account stage has not run", "No cost is known"]),
        (("distill", "fuse"), ["The export stage has not run", "The transfer stage has not run"]),
        (("account", "transfer"), ["No student has been trained yet", "The export stage has not"]),
    ],
)
def test_a_stage_that_has_not_run_is_said(
    make_run: Make, stages: tuple[str, ...], sentences: list[str]
) -> None:
    folder = make_run(stages=stages)
    page = Page(write_report(folder).read_text())
    text = (folder / "report.md").read_text()
    for sentence in sentences:
        assert sentence in page.text and sentence in text


def test_what_the_recipe_leaves_out_is_said_and_has_no_columns(make_run: Make) -> None:
    folder = make_run(stages=("teacher", "distill"))
    left_out = "fuse: null\naccount: null\nexport: null\ntransfer: []\n"
    with (folder / "resolved.yaml").open("a") as resolved:
        resolved.write(left_out)
    page = Page(write_report(folder).read_text())
    text = (folder / "report.md").read_text()
    for stage in ("fuse", "account", "export", "transfer"):
        sentence = f"The recipe leaves out the {stage} stage."
        assert sentence in page.text and sentence in text
    assert "has not run" not in text
    head = next(line for line in text.splitlines() if line.startswith("| Network |"))
    assert "Difference to student alone" in head
    console = Console(width=120, file=io.StringIO())
    console.print(*terminal_tables(folder))
    assert isinstance(console.file, io.StringIO)
    for shown in (head, console.file.getvalue()):
        assert "Top-1" in shown
        for nothing in ("Parameters", "MACs", "Size", "Latency", "Pruning"):
            assert nothing not in shown


def test_an_empty_folder_has_a_report(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path).read_text())
    assert "The run directory holds no recipe" in page.text


def test_without_a_student_alone_nothing_is_compared(make_run: Make) -> None:
    folder = make_run()
    for name in ("none", "none-trial1"):
        (folder / f"distill/{name}/result.json").unlink()
    write_report(folder)
    text = (folder / "report.md").read_text()
    assert "No student was trained alone" in text
    results = text.split("## Training curves")[0].split("## Results")[1]
    assert "higher" not in results and "paired" not in results


def test_a_student_that_is_no_candidate_is_not_recommended(make_run: Make, change: Change) -> None:
    folder = make_run()
    for name in ("kd", "kd-trial1", "crd-14", "none", "none-trial1"):
        change(folder, f"distill/{name}", lambda values: values.update(recommended_candidate=False))
    write_report(folder)
    values = json.loads((folder / "report.json").read_text())["values"]
    assert values["recommendation"]["label"] == "simkd"


def test_a_fusion_that_gives_no_number_is_no_success(make_run: Make, change: Change) -> None:
    folder = make_run()

    def spoil(values: Any) -> None:
        values["students"] = [{**values["students"][0], "fused_max_abs": 1e-9}]
        values["students"][0]["folded_max_abs"] = float("nan")

    change(folder, "fuse", spoil)
    write_report(folder)
    section = (folder / "report.md").read_text().split("## Fusion proof")[1].split("##")[0]
    assert "| no |" in section and "| yes |" not in section
    json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)


HOSTILE = '<script>x</script>|_*`$a$ & "q" [l](http://x)'


def test_labels_are_escaped_everywhere(make_run: Make, change: Change) -> None:
    folder = make_run()
    (folder / "run.json").write_text(json.dumps({"name": HOSTILE}))
    (folder / "recipe.yaml").write_text("a: </code></pre><script>y</script> # ``` end\n")
    for stage, key in (("teacher", "teachers"), ("account", "networks"), ("fuse", "students")):
        change(folder, stage, lambda values, key=key: values[key][0].update(label=HOSTILE))
    for name in ("simkd", "simkd-trial1"):
        change(folder, f"distill/{name}", lambda values: values.update(label=HOSTILE))
    change(folder, "transfer/detection", lambda v: v["rows"][0].update(student=HOSTILE))
    page = Page(write_report(folder).read_text())
    assert page.open == [] and "script" not in page.tags
    assert HOSTILE in page.text
    assert all(reference.startswith(("#", "data:image/")) for reference in page.references)
    text = (folder / "report.md").read_text()
    assert "<script>x" not in text
    tables = [line for line in text.splitlines() if line.startswith("|") and "script" in line]
    assert len(tables) >= 4
    assert all("\\|\\_\\*\\`\\$a\\$ \\&" in line for line in tables)
    assert "````yaml" in text


def test_no_partial_file_is_left(make_run: Make) -> None:
    folder = make_run()
    write_report(folder)
    write_report(folder)
    assert not list(folder.rglob("*.partial"))


def test_terminal_table(complete: Path) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(*terminal_tables(complete))
    text = console.export_text()
    assert "student alone (none)" in text and "recommended" in text and "77,850" in text
    assert text.index("student.int8.onnx") < text.index("student alone")


def test_a_validation_split_is_named_in_the_headline(make_run: Make) -> None:
    folder = make_run()
    recipe = folder / "resolved.yaml"
    recipe.write_text(recipe.read_text() + "data: {name: digits, validation: 100}\n")
    write_report(folder)
    text = (folder / "report.md").read_text()
    assert "| Top-1, epoch chosen on validation (%) |" in text
    assert "| Top-1, last epoch" not in text


def test_columns_of_latency_are_the_batches_that_were_timed(
    make_run: Make,
) -> None:
    folder = make_run()
    path = folder / "account/result.json"
    result = json.loads(path.read_text())
    for row in result["measured"]["latency"].values():
        row["256"] = row.pop("64")
    path.write_text(json.dumps(result))
    write_report(folder)
    header = (folder / "report.md").read_text().split("| Network |")[1].splitlines()[0]
    assert "batch 1 (ms)" in header and "batch 256 (ms)" in header and "64" not in header


def test_memory_of_every_student_that_was_measured(make_run: Make) -> None:
    folder = make_run()
    path = folder / "distill/kd/result.json"
    kd = json.loads(path.read_text())
    kd["measured"]["memory"]["device_peak_bytes"] = 1_234_567_890
    path.write_text(json.dumps(kd))
    for name in ("none", "none-trial1"):  # as an earlier version left it
        path = folder / f"distill/{name}/result.json"
        result = json.loads(path.read_text())
        del result["measured"]["memory"]
        path.write_text(json.dumps(result))
    write_report(folder)
    section = (folder / "report.md").read_text().split("## Training memory")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert rows[0].endswith("| Peak on the device (MB) |")
    assert rows[2:] == [
        "| kd | 25.43 | 0 | 64 | 1,234.57 |",
        "| crd-14 | 25.43 | 51.34 | 64 | \N{EN DASH} |",
        "| simkd | 25.43 | 0.047 | 64 | \N{EN DASH} |",
    ]
    assert "optimiser" in section and "main training" in section
    memory = json.loads((folder / "report.json").read_text())["measured"]["memory"]
    # Of two trials the larger.
    assert memory["simkd"] == {"step_bytes": 25_430_001, "method_bytes": 47_040, "batch": 64}


def test_without_numbers_there_is_no_table_of_memory(make_run: Make) -> None:
    folder = make_run(stages=("teacher",))
    page = write_report(folder)
    assert "Training memory" not in page.read_text() + (folder / "report.md").read_text()


def test_memory_is_told_per_device_only_where_there_is_one(complete: Path) -> None:
    page = (complete / "report.html").read_text()
    assert "Training memory" in page and "on the device" not in page


def test_what_the_int8_search_tried(make_run: Make, change: Change) -> None:
    trial = {
        "calibration": "minmax",
        "leave_out": [],
        "agreement_percent": 93.75,
        "top1_drop": 1.25,
        "difference": 0.25,
        "within_limits": False,
    }
    better = {**trial, "calibration": "entropy", "leave_out": [3, 4], "within_limits": True}

    def searched(values: dict[str, Any]) -> None:
        trials = [trial, {**better, "agreement_percent": 99.5}]
        values["int8_search"] = {
            "split": "validation",
            "images": 500,
            "trials": trials,
            "chosen": 1,
        }

    run = make_run()
    change(run, "export", searched)
    write_report(run)
    text = (run / "report.md").read_text()
    assert "tried, on 500 images of the validation split" in text
    assert "| minmax | none | 93.75 | 1.25 | 0.25 | exceeds a limit |" in text
    assert "| entropy | 3, 4 | 99.50 | 1.25 | 0.25 | chosen |" in text


@pytest.mark.parametrize(
    ("int8", "sentence"),
    [
        (None, "student.int8.onnx was left out of the bundle: a logit is off."),
        ({"full_range": True}, "right only on CPUs with VNNI or ARM dot product"),
        ({"drop_words": "-2.22 points on 45 images"}, "network: -2.22 points on 45 images."),
        ({"gate": {"remark": "45 images cannot tell"}}, "few images: 45 images cannot tell."),
    ],
)
def test_what_the_int8_file_is_good_for(
    make_run: Make, change: Change, int8: dict[str, Any] | None, sentence: str
) -> None:
    run = make_run()

    def say(values: Any) -> None:
        values.update(int8=int8, int8_refused="a logit is off" if int8 is None else None)

    change(run, "export", say)
    write_report(run)
    assert sentence in (run / "report.md").read_text()
