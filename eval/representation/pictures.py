"""The pictures of each part, with their file names and alternative texts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import Tensor

from compress.reporting import formats
from compress.reporting.drawing import MARKERS, render_png
from eval.representation.correlation import CorrelationDifference

_PANEL = 3.6  # inches
_MOST_IN_A_ROW = 3
_MOST_WRITTEN = 10  # layers of a matrix whose values still fit into its cells
_SHOWN_IMAGES = 6
# Tol's bright, muted and vibrant colours, told apart by the colour-blind; markers repeat them.
_CLASS_COLOURS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee",
    "#aa3377", "#882255", "#ee7733", "#332288", "#999999",
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A PNG, its file's name, what it shows in words, and a caption with its numbers."""

    file: str
    alt: str
    caption: str
    png: bytes


def correlations(differences: Mapping[str, CorrelationDifference], teacher: str) -> list[Picture]:
    """A heat map for each student, all in the same colours, so that they can be compared."""
    limit = max(one.largest_absolute for one in differences.values()) or 1.0

    def picture(label: str, one: CorrelationDifference) -> Picture:
        def draw(figure: Figure) -> None:
            axes = figure.add_subplot()
            image = axes.imshow(
                one.matrix.cpu().numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit,
                interpolation="nearest",
            )  # fmt: skip
            axes.grid(visible=False)
            axes.set_xlabel("Class")
            axes.set_ylabel("Class")
            figure.colorbar(image, label="Difference of correlations", shrink=0.8)

        size = f"{one.mean_absolute:.3f}, largest {one.largest_absolute:.3f}"
        classes = len(one.matrix)
        return Picture(
            f"correlation-{_safe(label)}.png",
            f"Heat map of {classes} by {classes} classes: correlation of logits in {label} minus "
            f"that in {teacher}; mean absolute difference {size}",
            f"Correlations of the classes' logits, {label} minus {teacher}: mean absolute "
            f"difference {size}",
            render_png(draw, (4.6, _PANEL)),
        )

    return [picture(label, one) for label, one in differences.items()]


def tsne(
    maps: Mapping[str, NDArray[Any]],
    labels: NDArray[Any],
    names: Sequence[str],
    scores: Mapping[str, float | None],
) -> Picture:
    """A panel for each network, classes in the same colours and markers in all of them."""
    columns, rows = _panels(len(maps))

    def draw(figure: Figure) -> None:
        for place, (label, points) in enumerate(maps.items(), 1):
            axes = figure.add_subplot(rows, columns, place)
            for number in range(len(names)):
                own = points[labels == number]
                axes.plot(*own.T, linestyle="none", markersize=3, **_of_class(number))
            _bare(axes)
            axes.set_title(f"{label}\nsilhouette {_number(scores[label])}", fontsize=10)
        handles = [
            Line2D([], [], linestyle="none", markersize=6, **_of_class(number))
            for number in range(len(names))
        ]
        legend = figure.legend(
            handles, [str(i) for i in range(len(names))], loc="outside lower center",
            ncols=min(5, len(names)), frameon=False, handletextpad=0.2, columnspacing=1.2,
        )  # fmt: skip
        # Set last: matplotlib drops labels that begin with _.
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set_parse_math(False)
            text.set_text(name)

    numbers = ", ".join(f"{label} {_number(score)}" for label, score in scores.items())
    return Picture(
        "tsne.png",
        f"t-SNE of the embeddings of {len(names)} classes in {', '.join(maps)}; silhouette of the "
        f"embeddings: {numbers}",
        f"t-SNE of {len(labels)} embeddings of {len(names)} classes; silhouette of the embeddings "
        f"themselves: {numbers}",
        render_png(draw, (_PANEL * columns, _PANEL * rows + 0.3 * -(-len(names) // 5))),
    )


def cka(
    label: str,
    values: Mapping[str, Any],
    teacher: str,
    teacher_layers: Sequence[str],
    layers: Sequence[str],
) -> Picture:
    """The linear and the RBF matrix beside each other; rows are the teacher's layers."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(values), sharey=True, squeeze=False)[0]
        for one, kernel in zip(axes, values, strict=True):
            matrix = np.array(values[kernel]["matrix"], dtype=float)
            image = one.imshow(matrix, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
            one.grid(visible=False)
            one.set_title("RBF" if kernel == "rbf" else kernel.capitalize(), fontsize=10)
            one.set_xticks(range(len(layers)), layers, rotation=40, ha="right")
            one.set_yticks(range(len(teacher_layers)), teacher_layers)
            one.set_xlabel(label, parse_math=False)
            if max(matrix.shape) <= _MOST_WRITTEN:
                _write_values(one, matrix)
        axes[0].set_ylabel(teacher, parse_math=False)
        figure.colorbar(image, ax=axes, label="CKA", shrink=0.8)

    deepest = {k: _number(one["diagonal"][-1]["cka"], 2) for k, one in values.items()}
    numbers = f"linear {deepest['linear']}, RBF {deepest['rbf']}"
    wide, high = (0.55 * len(one) + 1.4 for one in (layers, teacher_layers))
    return Picture(
        f"cka-{_safe(label)}.png",
        f"Heat maps of linear and RBF CKA between {len(teacher_layers)} layers of {teacher} and "
        f"{len(layers)} of {label}; of their last layers {numbers}",
        f"CKA between the layers of {teacher} and {label}; of their last layers {numbers}",
        render_png(draw, (max(6.4, 2 * wide + 1), max(3.2, high + 0.6))),
    )


def entropies(
    pixels: Tensor, maps: Mapping[str, NDArray[Any]], values: Mapping[str, Mapping[str, Any]]
) -> Picture:
    """A row for each image: the image, then its entropies in every network, all in one scale."""
    shown = min(_SHOWN_IMAGES, len(pixels))
    images = pixels[:shown].permute(0, 2, 3, 1).cpu().numpy()
    low, high = np.percentile([one[:shown] for one in maps.values()], (1, 99))

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(maps) + 1, shown, squeeze=False)
        for column, image in enumerate(images):
            grid[0][column].imshow(image, interpolation="nearest")
            for row, one in enumerate(maps.values(), 1):
                drawn = grid[row][column].imshow(
                    one[column], cmap="viridis_r", vmin=low, vmax=high, interpolation="nearest"
                )
        for axes in grid.flat:
            _bare(axes)
        for row, label in enumerate(("image", *maps)):
            grid[row][0].set_ylabel(label, parse_math=False)
        figure.colorbar(drawn, ax=grid[1:], label="Entropy (nats)", shrink=0.8)

    numbers = ", ".join(f"{k} {_number(v['mean_entropy_nats'])}" for k, v in values.items())
    return Picture(
        "entropy.png",
        f"{shown} images and the entropy of their pixels in {', '.join(maps)}; mean entropy in "
        f"nats: {numbers}",
        "Entropy of each pixel in a network's embedding: it depends on the bright pixels and "
        f"discards the dark ones; mean over all pixels and images in nats: {numbers}",
        render_png(draw, (1.15 * shown + 1.2, 1.15 * (len(maps) + 1))),
    )


def _panels(count: int) -> tuple[int, int]:
    """Columns and rows of so many panels."""
    columns = 2 if count in (2, 4) else min(_MOST_IN_A_ROW, count)
    return columns, -(-count // columns)


def _of_class(number: int) -> dict[str, Any]:
    colour = _CLASS_COLOURS[number % len(_CLASS_COLOURS)]
    return {"color": colour, "marker": MARKERS[number % len(MARKERS)], "markeredgewidth": 0}


def _bare(axes: Axes) -> None:
    """No ticks, no grid: the numbers of the axes mean nothing."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _write_values(axes: Axes, matrix: NDArray[Any]) -> None:
    for (row, column), value in np.ndenumerate(matrix):
        colour = "white" if value < 0.6 else "black"
        axes.text(
            column, row, _number(None if np.isnan(value) else value, 2), color=colour, fontsize=8,
            ha="center", va="center",
        )  # fmt: skip


def _number(value: float | None, decimals: int = 3) -> str:
    return formats.MISSING if value is None else formats.decimal(value, decimals)


def _safe(label: str) -> str:
    return re.sub(r"[^\w.+-]", "-", label)
