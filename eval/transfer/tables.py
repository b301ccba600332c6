"""The table of a comparison, for the terminal and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from compress.reporting.tables import Column, ReportTable

Row = Mapping[str, Any]
# Texts; every other column holds numbers.
_TEXTS = ("init", "student")


def table_of(results: Mapping[str, Mapping[str, Any]]) -> ReportTable:
    """Initialisations x metrics of one data set; of several, initialisations x data sets.

    Args:
        results: data set -> the `values` of its result.
    """
    if len(results) == 1:
        return _metrics(next(iter(results.values())))
    headers, columns = ["init"], []
    inits: dict[str, None] = {}
    for name, values in results.items():
        rows = {row["init"]: row for row in values["rows"]}
        inits |= dict.fromkeys(rows)
        key, reference = values["headline"], _reference(values)
        headers.append(f"{name}: {_header(key)}")
        columns.append((rows, key, mean_cell))
        if reference:
            headers.append(f"difference to {reference}")
            columns.append((rows, key, difference_cell))
    body = [
        [init, *(cell(rows[init], key) if init in rows else "" for rows, key, cell in columns)]
        for init in inits
    ]
    return _table(headers, body)


def _metrics(values: Mapping[str, Any]) -> ReportTable:
    rows: Sequence[Row] = values["rows"]
    headline = values["headline"]
    keys = [headline, *(key for key in rows[0]["metrics"] if key != headline)]
    reference = _reference(values)
    compared = [f"{_header(headline)}, difference to {reference}"] if reference else []
    headers = ["init", "student", *(_header(key) for key in keys), *compared, "loaded %"]
    body = [
        [
            row["init"],
            row["student"],
            *(mean_cell(row, key) for key in keys),
            *(difference_cell(row, headline) for _ in compared),
            f"{row['matched_percent']:.1f}",
        ]
        for row in rows
    ]
    return _table(headers, body)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> ReportTable:
    return ReportTable([Column(h, is_number=h not in _TEXTS) for h in headers], rows)


def _reference(values: Mapping[str, Any]) -> str | None:
    """The init that others are compared to; None where nothing is compared."""
    names = [row["against"]["reference"] for row in values["rows"] if row["against"]]
    return str(names[0]) if names else None


def _header(key: str) -> str:
    return key.replace("_percent", " %").replace("_", " ")


def mean_cell(row: Row, key: str) -> str:
    """54.20 +- 0.31 (n = 3): mean, standard deviation over the seeds, number of seeds."""
    mean = f"{row['metrics'][key]:.2f}"
    if row["spread"] is None:
        return mean
    return f"{mean} ± {row['spread'][key]:.2f} (n = {len(row['per_seed'])})"


def difference_cell(row: Row, key: str) -> str:
    """+1.20 [+0.40, +2.00]: mean paired difference and its 95 % interval.

    Over the test images, where they were paired, else over the seeds.
    """
    if not row["against"]:
        return "reference"
    mean, interval, p_value = difference_of(row["against"], key)
    if interval is None:
        return f"{mean:+.2f} (no interval)"
    p_text = "" if p_value is None else f", p {p_value:.3f}"
    return f"{mean:+.2f} [{interval[0]:+.2f}, {interval[1]:+.2f}]{p_text}"


def difference_of(
    against: Mapping[str, Any], key: str
) -> tuple[float, Sequence[float] | None, float | None]:
    """Of a row's `against`: the mean difference in a metric, its interval and p-value, if any."""
    mean = against["differences"][key]["mean"]
    over_images = (against.get("over_images") or {}).get(key)
    if over_images is not None:
        return mean, over_images["interval"], over_images["p_value"]
    return mean, against["differences"][key]["interval"], None
