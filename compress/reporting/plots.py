"""The kinds of plots: values over epochs, and accuracy against size."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from compress.reporting.drawing import COLOURS, DPI, MARKERS, MUTED, RULE, Plot, render

_MOST_LABELS = 8  # of points in one plot


@dataclass(frozen=True)
class Curve:
    """A line: values over epochs, and its place in the order of colours and markers."""

    label: str
    points: Sequence[tuple[float, float]]
    style: int


@dataclass(frozen=True)
class Point:
    """A network in the plane of cost and accuracy; `error` is one standard error."""

    label: str
    x: float
    y: float
    error: float
    style: int
    is_hollow: bool = False


@dataclass(frozen=True)
class Family:
    """Points that belong together, joined in their order, and what the legend says of them."""

    label: str
    points: Sequence[Point]


def curves(
    lines: Sequence[Curve], x_label: str, y_label: str, *, salt: str, is_percent: bool = False
) -> Plot:
    """Values per epoch, one line each.

    A logarithmic axis where values span a factor of 20 and are no percentages.
    """

    def draw(figure: Figure, axes: Axes) -> None:
        for line in lines:
            xs, ys = [x for x, _ in line.points], [y for _, y in line.points]
            step = max(1, len(xs) // 7)
            axes.plot(
                xs,
                ys,
                color=COLOURS[line.style % len(COLOURS)],
                linestyle="-" if line.style else "--",
                marker=MARKERS[line.style % len(MARKERS)],
                markevery=(line.style % step, step),
            )
        values = [y for line in lines for _, y in line.points]
        if not is_percent and values and min(values) > 0 and max(values) > 20 * min(values):
            _logarithmic(axes, "y")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _legend(figure, axes.get_lines(), [line.label for line in lines])

    return render(draw, salt)


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats: none costs at most as much and is more accurate, or equal
    and costs less; by rising cost."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def accuracy_against_cost(
    points: Sequence[Point], x_label: str, y_label: str, *, salt: str
) -> Plot:
    """Every network as a point with its standard error, and the line of the Pareto front.

    Costs that span a factor of 12 get a logarithmic axis. Of many points only those of the front,
    and the first, have labels.
    """
    front = pareto_front(points)
    named = points if len(points) <= _MOST_LABELS else [*points[:1], *front]

    def draw(figure: Figure, axes: Axes) -> None:
        xs, ys = [point.x for point in front], [point.y for point in front]
        axes.plot(xs, ys, color=MUTED, linestyle=":", linewidth=1.4, drawstyle="steps-post")
        for point in points:
            colour = COLOURS[point.style % len(COLOURS)]
            marker = MARKERS[point.style % len(MARKERS)]
            axes.errorbar(
                point.x, point.y, yerr=point.error or None, color=colour, marker=marker,
                markersize=7, linestyle="none", elinewidth=1, capsize=2.5,
                markerfacecolor="none" if point.is_hollow else colour,
            )  # fmt: skip
        costs = [point.x for point in points]
        if costs and max(costs) > 12 * min(costs):
            _logarithmic(axes, "x")
        axes.margins(x=0.1, y=0.12)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        figure.draw_without_rendering()  # the layout decides where the points are
        _label_points(axes, list(dict.fromkeys(named)))

    return render(draw, salt)


def reliability(lines: Sequence[Curve], *, salt: str) -> Plot:
    """Accuracy against confidence, both in percent; on the dashed line they are equal."""

    def draw(figure: Figure, axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=MUTED, linestyle="--", linewidth=1)
        handles = []
        for line in lines:
            xs, ys = [x for x, _ in line.points], [y for _, y in line.points]
            colour = COLOURS[line.style % len(COLOURS)]
            marker = MARKERS[line.style % len(MARKERS)]
            handles += axes.plot(xs, ys, color=colour, marker=marker)
        axes.set_xlim(0, 102)
        axes.set_ylim(0, 102)
        axes.set_xlabel("Confidence (%)")
        axes.set_ylabel("Correct (%)")
        _legend(figure, handles, [line.label for line in lines])

    return render(draw, salt)


def by_class(
    names: Sequence[str], pairs: Sequence[tuple[float, float]], labels: Sequence[str], *, salt: str
) -> Plot:
    """Two percentages of each class on a line of its own, the first class on top.

    Args:
        names: of the classes.
        pairs: of each class, the percentage of the first network and of the second.
        labels: of the two networks.
    """

    def draw(figure: Figure, axes: Axes) -> None:
        heights = range(len(names), 0, -1)
        for height, (first, second) in zip(heights, pairs, strict=True):
            axes.plot([first, second], [height, height], color=RULE, linewidth=2.5, zorder=1)
        handles = [
            axes.plot(
                [pair[place] for pair in pairs], heights, color=COLOURS[place],
                marker=MARKERS[place], linestyle="none", zorder=2,
            )[0]
            for place in (0, 1)
        ]  # fmt: skip
        axes.set_yticks([*heights], labels=list(names), parse_math=False)
        axes.set_ylim(0.4, len(names) + 0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("Correct (%)")
        _legend(figure, handles, labels)

    return render(draw, salt, height=1.1 + 0.2 * len(names))


def accuracy_against_ratio(
    families: Sequence[Family], bare: Family, x_label: str, y_label: str, *, salt: str
) -> Plot:
    """Accuracy of deployed networks against their pruning ratio, those of one family joined.

    Args:
        bare: the networks that nothing is added to; a dashed line stands at their ratio.
    """

    def draw(figure: Figure, axes: Axes) -> None:
        axes.axvline(bare.points[0].x, color=COLOURS[0], linestyle="--", linewidth=1)
        handles = [_family(axes, one, place) for place, one in enumerate((bare, *families))]
        axes.margins(x=0.1, y=0.12)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _legend(figure, handles, [one.label for one in (bare, *families)])
        figure.draw_without_rendering()  # the layout decides where the points are
        _label_points(axes, [point for one in families for point in one.points], reach=30)

    return render(draw, salt)


def _family(axes: Axes, family: Family, style: int) -> Line2D:
    """Draw points, their errors and the line through them; the first stands at a dashed one."""
    xs, ys = [p.x for p in family.points], [p.y for p in family.points]
    colour, marker = COLOURS[style % len(COLOURS)], MARKERS[style % len(MARKERS)]
    errors = [p.error for p in family.points]
    axes.errorbar(xs, ys, yerr=errors, color=colour, linestyle="none", elinewidth=1, capsize=2.5)
    dashes = "-" if style else "--"
    (line,) = axes.plot(xs, ys, color=colour, marker=marker, linestyle=dashes, linewidth=1)
    return line


def _label_points(axes: Axes, points: Sequence[Point], *, reach: float = 90) -> None:
    """Labels beside their points, towards the middle, moved apart where they would overlap.

    `reach`: the width of a label, in points.
    """
    middle = 72 / DPI * sum(axes.bbox.intervalx) / 2
    placed: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: point.y):
        x, y = (float(value) * 72 / DPI for value in axes.transData.transform((point.x, point.y)))
        nearby = [other_y for other_x, other_y in placed if abs(other_x - x) < reach]
        height = max([y, *(other + 12 for other in nearby)])
        placed.append((x, height))
        label = axes.annotate(
            point.label,
            (point.x, point.y),
            xytext=(8 if x < middle else -8, height - y),
            textcoords="offset points",
            horizontalalignment="left" if x < middle else "right",
            verticalalignment="center",
            fontsize=9.5,
            parse_math=False,
        )
        label.set_in_layout(False)


def _logarithmic(axes: Axes, which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, handles: Sequence[Line2D], labels: Sequence[str]) -> None:
    """A legend under the plot. Texts are set last: matplotlib drops labels that begin with _."""
    places = [str(place) for place in range(len(labels))]
    legend = figure.legend(
        handles,
        places,
        loc="outside lower left",
        ncols=_columns(labels),
        frameon=False,
        handlelength=2.4,
        columnspacing=1.4,
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(label)


def _columns(labels: Sequence[str]) -> int:
    """Columns of a legend, which is filled column by column: at most 3, as many as fit."""
    for columns in (min(3, len(labels)), 2):
        rows = -(-len(labels) // columns)
        longest = [max(map(len, labels[i : i + rows])) for i in range(0, len(labels), rows)]
        if sum(length + 6 for length in longest) <= 58:  # in letters, with line and gap
            return columns
    return 1
