"""The four parts: what is measured of a teacher and its students on the same test images.

Each part has numbers and pictures; none needs another. All read images as the data set prepares
them; a network of another size or normalisation gets them converted, as in distillation.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from compress.console.messages import log
from compress.data import Dataset, Images
from compress.errors import UserError
from compress.seeding import generator
from eval.representation import pictures
from eval.representation.cka import LEAST_IMAGES, CkaMatrix, even_batches, linear_gram, rbf_gram
from eval.representation.correlation import correlation_difference
from eval.representation.embeddings import of_first_classes, silhouette, tsne_map
from eval.representation.entropy import (
    View,
    concept_iou,
    concepts,
    pixel_entropy,
    random_view,
)
from eval.representation.networks import ComparedNetwork
from eval.representation.pictures import Picture

_MAP_BYTES = 2**28  # of the largest stage of a batch
_OPTIMISED_TOGETHER = 32  # images whose gradients are in memory at a time


@dataclass(frozen=True)
class Settings:
    """What is measured on how much.

    `images` test images, drawn at random, for correlations and CKA, whose batches have `batch_size`
    at most, fewer where maps are large; `tsne_images` of the first `tsne_classes` classes;
    `entropy_images` and `entropy_steps` bound the most expensive part. `rbf_fraction`: see `cka`;
    `entropy_rate`: see `entropy`.
    """

    images: int = 2000
    batch_size: int = 250
    rbf_fraction: float = 0.8
    tsne_classes: int = 10
    tsne_images: int = 1000
    perplexity: float = 30.0
    entropy_images: int = 32
    entropy_steps: int = 200
    entropy_rate: float = 0.1
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Part:
    """Numbers of a part and its pictures."""

    values: dict[str, Any]
    pictures: list[Picture]


@dataclass(frozen=True)
class Comparison:
    """A teacher, its students, and the test images that all of them see."""

    teacher: ComparedNetwork
    students: Sequence[ComparedNetwork]
    data: Dataset
    settings: Settings

    @property
    def networks(self) -> list[ComparedNetwork]:
        """The teacher, then the students."""
        return [self.teacher, *self.students]

    @cached_property
    def sample(self) -> Images:
        """The images of correlations and CKA, in an order drawn at random.

        A test set that is sorted by class would give batches of one class.
        """
        images = self.data.test
        order = torch.randperm(len(images), generator=generator(self.settings.seed, "images"))
        return images.subset(order[: self.settings.images])

    @property
    def batch_size(self) -> int:
        """The most images in a batch, of which the largest map takes no more than 256 MiB."""
        widest = max((prod(s.shape) for n in self.networks for s in n.stages), default=1)
        fitting = _MAP_BYTES // (4 * widest)
        return max(LEAST_IMAGES, min(self.settings.batch_size, fitting))

    def batches(self, images: Images) -> Iterator[Tensor]:
        """Pixel values (n, 3, S, S) from 0 to 1 of images in their order."""
        sizes = even_batches(len(images), self.batch_size)
        for indices in torch.split(torch.arange(len(images)), sizes):
            yield images.fetch(indices).float() / 255


def measure(
    comparison: Comparison, parts: Sequence[str]
) -> tuple[dict[str, Part], dict[str, float]]:
    """The parts of `PARTS` that are named, in its order, and the seconds of each.

    Raises:
        UserError: there are too few images.
    """
    measured, seconds = {}, {}
    for name in (name for name in PARTS if name in parts):
        start = time.perf_counter()
        measured[name] = PARTS[name](comparison)
        seconds[name] = time.perf_counter() - start
        skipped = measured[name].values.get("skipped")
        log(f"  {name}: " + (f"skipped, {skipped}" if skipped else f"{seconds[name]:.1f} s"))
    return measured, seconds


def _correlation(comparison: Comparison) -> Part:
    """Differences of the correlations of the classes' logits."""
    teacher = comparison.teacher
    without = [network.label for network in comparison.networks if network.classes is None]
    students = [s for s in comparison.students if s.classes == teacher.classes]
    if teacher.classes is None or not students:
        reason = f"no logits in {', '.join(without)}" if without else "the classes are not the same"
        return Part({"skipped": reason}, [])
    if teacher.classes < 2:
        return Part({"skipped": "there is one class"}, [])
    logits = {
        network.label: torch.cat(
            [network.logits(pixels).cpu() for pixels in comparison.batches(comparison.sample)]
        )
        for network in (teacher, *students)
    }
    differences = {
        s.label: correlation_difference(logits[s.label], logits[teacher.label]) for s in students
    }
    values = {
        "images": len(comparison.sample),
        "classes": teacher.classes,
        "students": {
            label: {
                "mean_absolute_difference": one.mean_absolute,
                "largest_absolute_difference": one.largest_absolute,
            }
            for label, one in differences.items()
        },
    }
    return Part(values, pictures.correlations(differences, teacher.label))


def _tsne(comparison: Comparison) -> Part:
    """Maps of the embeddings, and how well their classes are apart."""
    settings, test = comparison.settings, comparison.data.test
    # Those that training must not see are shown here: nothing is trained.
    labels = test.labels if test.hidden_labels is None else test.hidden_labels
    numbers = [f"class {number}" for number in range(int(labels.max()) + 1)]
    names = comparison.data.class_names or numbers
    if not comparison.data.class_names and test.hidden_labels is None:
        return Part({"skipped": "the test images have no labels"}, [])
    count = min(settings.tsne_classes, len(names))
    chosen = of_first_classes(labels, classes=count, count=settings.tsne_images)
    if len(chosen) < LEAST_IMAGES:
        return Part({"skipped": "there are too few test images of the first classes"}, [])
    images, labels = test.subset(chosen), labels[chosen]
    embeddings = {
        network.label: torch.cat(
            [
                network.layers(pixels).embedding.float().cpu()
                for pixels in comparison.batches(images)
            ]
        ).flatten(1)
        for network in comparison.networks
    }
    scores = {label: silhouette(one, labels) for label, one in embeddings.items()}
    maps = {
        label: tsne_map(one, perplexity=settings.perplexity, seed=settings.seed)
        for label, one in embeddings.items()
    }
    values = {
        "images": len(images),
        "classes": list(names[:count]),
        "networks": {label: {"silhouette": score} for label, score in scores.items()},
    }
    return Part(values, [pictures.tsne(maps, labels.numpy(), names[:count], scores)])


def _cka(comparison: Comparison) -> Part:
    """CKA of every stage of the teacher with every stage of a student."""
    fraction = comparison.settings.rbf_fraction
    kernels: dict[str, Callable[[Tensor], Tensor]] = {
        "linear": linear_gram,
        "rbf": lambda features: rbf_gram(features, fraction),
    }
    sums = {s.label: {kernel: CkaMatrix() for kernel in kernels} for s in comparison.students}
    for pixels in comparison.batches(comparison.sample):
        grams = _grams(comparison.teacher, pixels, kernels)
        for student in comparison.students:
            own = _grams(student, pixels, kernels)
            for kernel, matrix in sums[student.label].items():
                matrix.add(grams[kernel], own[kernel])
    names = comparison.teacher.layer_names
    students = {
        student.label: {
            kernel: _cka_values(sums[student.label][kernel].value(), names, student.layer_names)
            for kernel in kernels
        }
        for student in comparison.students
    }
    layers = {network.label: network.layer_names for network in comparison.networks}
    images = len(comparison.sample)
    values = {
        "images": images,
        "batches": even_batches(images, comparison.batch_size),
        "layers": layers,
        "students": students,
    }
    drawn = [
        pictures.cka(label, one, comparison.teacher.label, names, layers[label])
        for label, one in students.items()
    ]
    return Part(values, drawn)


def _grams(
    network: ComparedNetwork, pixels: Tensor, kernels: Mapping[str, Callable[[Tensor], Tensor]]
) -> dict[str, list[Tensor]]:
    """Kernel -> the kernel matrix of every layer of a batch."""
    layers = network.layers(pixels).every
    return {name: [gram(layer) for layer in layers] for name, gram in kernels.items()}


def _cka_values(matrix: Tensor, teacher: Sequence[str], student: Sequence[str]) -> dict[str, Any]:
    """The matrix (teacher's layers, student's layers), and its diagonal.

    Networks of different numbers of stages are paired from the embeddings backwards.
    """
    cells = [[None if v != v else v for v in row] for row in matrix.tolist()]
    depth = min(len(teacher), len(student))
    diagonal = [
        {"teacher": teacher[-k], "student": student[-k], "cka": cells[-k][-k]}
        for k in range(depth, 0, -1)
    ]
    return {"matrix": cells, "diagonal": diagonal}


def _entropy(comparison: Comparison) -> Part:
    """Pixel-wise conditional entropy, and IoU of visual concepts."""
    settings = comparison.settings
    images = comparison.sample.subset(
        torch.arange(min(settings.entropy_images, len(comparison.sample)))
    )
    pixels = images.fetch(torch.arange(len(images))).float() / 255
    draws = generator(settings.seed, "views")
    views = [random_view(pixels, draws) for _ in range(2)]
    maps = {n.label: _entropy_maps(comparison, n, views) for n in comparison.networks}
    networks = {label: _entropy_values(views, *three) for label, three in maps.items()}
    teacher = concepts(maps[comparison.teacher.label][0])
    students = {
        s.label: {"teacher_iou": concept_iou(teacher, concepts(maps[s.label][0]))}
        for s in comparison.students
    }
    values = {"images": len(images), "networks": networks, "students": students}
    firsts = {label: one[0].numpy() for label, one in maps.items()}
    drawn = pictures.entropies(views[0].pixels, firsts, networks)
    return Part(values, [drawn])


def _entropy_values(
    views: Sequence[View], first: Tensor, second: Tensor, again: Tensor
) -> dict[str, float | None]:
    """Numbers of the entropies (N, S, S) of two views, and of the first under other noise."""
    of_view = [concepts(one) for one in (first, second)]
    (own, shown), (other, also_shown) = (
        view.place(chosen) for view, chosen in zip(views, of_view, strict=True)
    )
    return {
        "mean_entropy_nats": float(torch.cat([first, second]).mean()),
        "view_iou": concept_iou(own, other, shown & also_shown),
        "same_view_iou": concept_iou(of_view[0], concepts(again)),
    }


def _entropy_maps(
    comparison: Comparison, network: ComparedNetwork, views: Sequence[View]
) -> tuple[Tensor, Tensor, Tensor]:
    """Entropies (N, S, S) of both views, and of the first under other noise; on the CPU."""
    settings = comparison.settings
    variance = _embedding_variance(comparison, network)
    if not variance > 0:
        raise UserError(f"{network.label}: its embedding is the same for all images")

    def entropy(view: View, draw: int) -> Tensor:
        draws = generator(settings.seed, "noise", draw)  # the same for every network
        parts = [
            pixel_entropy(
                network.embed,
                pixels.to(network.device),
                variance=variance,
                rate=settings.entropy_rate,
                steps=settings.entropy_steps,
                draws=draws,
            ).cpu()
            for pixels in torch.split(view.pixels, _OPTIMISED_TOGETHER)
        ]
        return torch.cat(parts)

    first, second = views
    return entropy(first, 0), entropy(second, 1), entropy(first, 2)


def _embedding_variance(comparison: Comparison, network: ComparedNetwork) -> float:
    """Variance of the embedding over images, summed over its numbers."""
    batches = comparison.batches(comparison.sample)
    embeddings = torch.cat([network.layers(p).embedding.double().cpu() for p in batches])
    return float(embeddings.flatten(1).var(0).sum())


# In the order of the report.
PARTS: Mapping[str, Callable[[Comparison], Part]] = {
    "correlation": _correlation,
    "tsne": _tsne,
    "cka": _cka,
    "entropy": _entropy,
}
