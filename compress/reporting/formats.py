"""Format numbers, one function per kind, the same in every table and sentence.

A missing value is printed as a dash. Units stand in the headers of tables.
"""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

MISSING = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_NO_BREAK = "\N{NO-BREAK SPACE}"


def decimal(value: float | None, decimals: int = 2) -> str:
    """1234.5 -> "1,234.50"; negative numbers get a real minus sign."""
    return MISSING if value is None else f"{value:,.{decimals}f}".replace("-", _MINUS)


def signed(value: float | None, decimals: int = 2) -> str:
    """Like `decimal`, with its sign; a difference that rounds to nothing has none."""
    if value is None:
        return MISSING
    text = f"{value:+,.{decimals}f}".replace("-", _MINUS)
    return text[1:] if not float(f"{value:.{decimals}f}") else text


def count(value: float | None) -> str:
    """1234567 -> "1,234,567"."""
    return MISSING if value is None else f"{value:,.0f}".replace("-", _MINUS)


def percent(value: float | None, decimals: int = 2) -> str:
    """97.333 -> "97.33 %", not to be broken over two lines."""
    return MISSING if value is None else f"{decimal(value, decimals)}{_NO_BREAK}%"


def scientific(value: float | None) -> str:
    """0.00000123 -> "1.23e-06"; an exact zero is printed as 0."""
    return MISSING if value is None else ("0" if value == 0 else f"{value:.2e}")


def millions(value: float | None) -> str:
    """41_220_000 -> "41.22"."""
    return MISSING if value is None else decimal(value / 1e6, 2 if value >= 1e5 else 3)


def megabytes(value: float | None) -> str:
    """Bytes in units of 10^6 bytes, with three decimals below a tenth."""
    return millions(value)


def milliseconds(value: float | None) -> str:
    """Milliseconds, with three decimals below a tenth."""
    return MISSING if value is None else decimal(value, 2 if value >= 0.1 else 3)


def mean_and_deviation(values: Sequence[float], decimals: int = 2) -> str:
    """One value alone; of several the mean and the standard deviation (divisor n - 1)."""
    if not values:
        return MISSING
    if len(values) == 1:
        return decimal(values[0], decimals)
    return f"{decimal(mean(values), decimals)} ± {decimal(stdev(values), decimals)}"


def duration(seconds: float | None) -> str:
    """3723.4 -> "1 h 02 min 03 s"; below a minute one decimal is kept."""
    if seconds is None:
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min {rest:02d} s" if hours else f"{minutes} min {rest:02d} s"


def readable(value: Any) -> str:
    """Any JSON value as text: settings, versions, counts."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {readable(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(readable(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def arguments(part: Any) -> str:
    """A named part: {name: simkd, reduction: 2} -> "simkd (reduction 2)"."""
    if not isinstance(part, dict):
        return readable(part)
    rest = {key: value for key, value in part.items() if key != "name"}
    name = str(part.get("name", MISSING))
    return f"{name} ({readable(rest)})" if rest else name
