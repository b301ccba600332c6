"""Similarity of representations: each number against loops in float64, limits and invariances."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compress import model_files, models
from compress.data import conversion
from compress.data.images import Preprocessing
from compress.errors import UserError
from compress.model_files import open_origin
from compress.reporting import write_report
from compress.storage.integrity import seal
from compress.taps import discover
from eval.representation import (
    cka,
    concept_iou,
    concepts,
    correlation_difference,
    logit_correlation,
    measure,
    pixel_entropy,
    silhouette,
)
from eval.representation.cka import CkaMatrix, even_batches, hsic, linear_gram, rbf_gram
from eval.representation.command import main
from eval.representation.embeddings import of_first_classes, tsne_map
from eval.representation.entropy import random_view
from eval.representation.networks import ComparedNetwork
from tests.eval.runs import SHOWN, write_run

FAST = ["--tsne-images", "30", "--entropy-images", "3", "--entropy-steps", "4", "--device", "cpu"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(size: int) -> Tensor:
    return torch.linalg.qr(drawn(size, size, seed=9))[0]


# Correlations


def test_correlation_is_pearsons_of_every_pair() -> None:
    logits = drawn(12, 4) * torch.tensor([1.0, 5.0, 0.1, 2.0]) + torch.tensor([0.0, 9.0, -3.0, 1.0])
    matrix = logit_correlation(logits)
    for j in range(4):
        for k in range(4):
            one, other = (logits[:, c].double().tolist() for c in (j, k))
            means = sum(one) / 12, sum(other) / 12
            products = [(a - means[0]) * (b - means[1]) for a, b in zip(one, other, strict=True)]
            norms = [
                math.sqrt(sum((v - mean) ** 2 for v in values))
                for values, mean in zip((one, other), means, strict=True)
            ]
            expected = sum(products) / (norms[0] * norms[1])
            assert float(matrix[j, k]) == pytest.approx(expected, abs=1e-9)


def test_difference_leaves_out_the_diagonal_and_knows_no_scale() -> None:
    student, teacher = drawn(30, 3), drawn(30, 3, seed=1)
    difference = correlation_difference(student, teacher)
    pairs = [abs(float(difference.matrix[j, k])) for j in range(3) for k in range(3) if j != k]
    assert difference.mean_absolute == pytest.approx(sum(pairs) / 6)
    assert difference.largest_absolute == pytest.approx(max(pairs))
    scaled = correlation_difference(student * torch.tensor([2.0, 0.5, 7.0]) + 4, teacher)
    assert scaled.mean_absolute == pytest.approx(difference.mean_absolute, abs=1e-6)
    assert correlation_difference(teacher, teacher).largest_absolute == 0
    # Of two classes of which one logit falls as the other rises, against two that rise together.
    ramp = torch.arange(5.0)
    ends = correlation_difference(torch.stack([ramp, -ramp], 1), torch.stack([ramp, ramp], 1))
    assert ends.mean_absolute == pytest.approx(2)


def test_constant_logit_is_correlated_with_none() -> None:
    logits = torch.stack([torch.full((7,), 0.1), drawn(7), drawn(7, seed=1)], 1)
    matrix = logit_correlation(logits)
    assert matrix[0].abs().max() == matrix[:, 0].abs().max() == 0
    assert torch.isfinite(matrix).all()


# CKA


def hsic_by_loops(first: Tensor, second: Tensor) -> float:
    """The U-statistic over all ordered quadruples of different images (Song et al. 2012)."""
    n, total, count = len(first), 0.0, 0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        k, m = float(first[i, j]), second
                        total += k * float(m[i, j] + m[q, r] - m[i, q] - m[i, r])
                        count += 1
    return total / count


def test_hsic_is_the_mean_over_quadruples() -> None:
    first, second = (linear_gram(drawn(6, 3, seed=s)) for s in (0, 1))
    assert float(hsic(first, second)) == pytest.approx(hsic_by_loops(first, second), rel=1e-9)
    with pytest.raises(ValueError, match="needs 4 images"):
        hsic(first[:3, :3], second[:3, :3])


def test_kernels_against_loops() -> None:
    features = drawn(5, 2, 3, 3)
    rows = [one.flatten().double() for one in features]
    mean = torch.stack(rows).mean(0)
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    distances = {pair: float((rows[pair[0]] - rows[pair[1]]).norm()) for pair in pairs}
    width = (
        0.8 * sorted(distances.values())[9]
    )  # the lower of both middle ones of 20, as torch has it
    linear, rbf = linear_gram(features), rbf_gram(features, 0.8)
    for i, j in pairs:
        product = float((rows[i] - mean) @ (rows[j] - mean))
        assert float(linear[i, j]) == pytest.approx(product, abs=1e-4)
        expected = math.exp(-(distances[i, j] ** 2) / (2 * width**2))
        assert float(rbf[i, j]) == pytest.approx(expected, abs=1e-5)
    assert linear.diagonal().abs().max() == rbf.diagonal().abs().max() == 0


@pytest.mark.parametrize("fraction", [None, 0.8])
def test_cka_knows_neither_rotation_nor_scale_nor_shift(fraction: float | None) -> None:
    first, second = drawn(20, 6), drawn(20, 6, seed=1) + 0.5 * drawn(20, 6)
    value = cka(first, second, rbf_fraction=fraction)
    assert 0 < value < 1
    changed = 3 * first @ rotation(6) + 5
    assert cka(changed, second, rbf_fraction=fraction) == pytest.approx(value, abs=1e-4)
    assert cka(first, changed, rbf_fraction=fraction) == pytest.approx(1, abs=1e-4)
    assert cka(second, first, rbf_fraction=fraction) == pytest.approx(value, abs=1e-6)


def test_unrelated_layers_that_are_wider_than_the_batch_have_none() -> None:
    """The biased estimate would be close to 1 here."""
    first, second = drawn(50, 2000), drawn(50, 2000, seed=1)
    assert abs(cka(first, second)) < 0.1
    centred = [(one - one.mean(0)).double() for one in (first, second)]
    biased = [one @ one.t() for one in centred]
    ratio = (biased[0] * biased[1]).sum() / (biased[0].norm() * biased[1].norm())
    assert ratio > 0.9


def test_mean_over_batches_is_that_of_hsic() -> None:
    layers = [drawn(24, 5), drawn(24, 7, seed=1) + drawn(24, 7)]
    matrix = CkaMatrix()
    parts: dict[tuple[int, int], list[float]] = {}
    for size, start in zip(even_batches(24, 10), (0, 8, 16), strict=True):
        grams = [linear_gram(one[start : start + size]) for one in layers]
        matrix.add(grams, grams)
        for i in range(2):
            for j in range(2):
                parts.setdefault((i, j), []).append(float(hsic(grams[i], grams[j])))
    means = {pair: sum(values) / 3 for pair, values in parts.items()}
    expected = means[0, 1] / math.sqrt(means[0, 0] * means[1, 1])
    assert float(matrix.value()[0, 1]) == pytest.approx(expected)
    assert torch.allclose(matrix.value().diagonal(), torch.ones(2, dtype=torch.float64))


def test_layer_that_is_the_same_for_all_images_has_no_cka() -> None:
    assert math.isnan(cka(torch.ones(8, 3), drawn(8, 3)))


def test_batches_are_even() -> None:
    assert even_batches(10, 4) == [4, 3, 3] and sum(even_batches(1001, 250)) == 1001
    with pytest.raises(UserError, match="4 images are needed"):
        even_batches(3, 250)


# Embeddings


def test_silhouette_against_loops_and_its_limits() -> None:
    points, labels = drawn(15, 4), torch.arange(15) % 3
    scores = []
    for i in range(15):
        means = {}
        for label in range(3):
            others = [j for j in range(15) if int(labels[j]) == label and j != i]
            distances = [float((points[i].double() - points[j].double()).norm()) for j in others]
            means[label] = sum(distances) / len(distances)
        own = means.pop(int(labels[i]))
        nearest = min(means.values())
        scores.append((nearest - own) / max(nearest, own))
    assert silhouette(points, labels) == pytest.approx(sum(scores) / 15, abs=1e-6)
    apart = torch.nn.functional.one_hot(labels).float() * 100 + 0.01 * points[:, :3]
    assert silhouette(apart, labels) == pytest.approx(1, abs=1e-3)
    assert silhouette(7 * points, labels) == pytest.approx(silhouette(points, labels), abs=1e-6)
    assert silhouette(points, torch.zeros(15)) is None


def test_map_of_a_seed_is_the_same_twice() -> None:
    points = drawn(12, 5)
    first, second = (tsne_map(points, perplexity=30, seed=3) for _ in range(2))
    assert first.shape == (12, 2) and np.array_equal(first, second)


def test_first_classes_have_equally_many_images() -> None:
    labels = torch.tensor([2, 0, 1, 0, 1, 2, 0])
    assert of_first_classes(labels, classes=2, count=4).tolist() == [1, 3, 2, 4]


# Knowledge quantification


def linear_embedding(scale: float = 1.0) -> tuple[Callable[[Tensor], Tensor], Tensor, float]:
    """Embedding A x of images of 4 x 4 pixels, the sums over channels |a_i|^2, the variance."""
    weights = drawn(48, 6) * torch.linspace(0.2, 2, 16).repeat(3)[:, None]
    sensitivity = weights.square().sum(1).view(3, 16).sum(0)
    variance = float((torch.rand(400, 48, generator=torch.Generator().manual_seed(1)) @ weights)
                     .var(0).sum())  # fmt: skip
    return lambda pixels: scale * pixels.flatten(1) @ weights, sensitivity, variance


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_entropy_of_a_linear_embedding_is_the_closed_form() -> None:
    """There s_i^2 = rate V / (2 n |a_i|^2), by setting the derivative to 0."""
    embed, sensitivity, variance = linear_embedding()
    arguments = {"variance": variance, "rate": 0.1, "steps": 600}
    entropy = pixel_entropy(embed, torch.rand(3, 3, 4, 4), **arguments, draws=draws())
    exact = [
        0.5 * math.log(0.1 * variance / (2 * 16 * float(a))) + 0.5 * math.log(2 * math.pi * math.e)
        for a in sensitivity
    ]
    expected = torch.tensor(exact).view(1, 4, 4).expand(3, 4, 4)
    assert (entropy - expected).abs().mean() < 0.1
    assert abs(float((entropy - expected).mean())) < 0.08


def test_entropy_knows_no_scale_and_each_image_stands_alone() -> None:
    (embed, _, variance), (scaled, _, _) = linear_embedding(), linear_embedding(10)
    pixels = torch.rand(3, 3, 4, 4)
    arguments = {"rate": 0.1, "steps": 20}
    entropy = pixel_entropy(embed, pixels, variance=variance, **arguments, draws=draws())
    again = pixel_entropy(scaled, pixels, variance=100 * variance, **arguments, draws=draws())
    assert torch.allclose(entropy, again, atol=1e-4)
    other = torch.cat([pixels[:2], torch.zeros(1, 3, 4, 4)])
    beside = pixel_entropy(embed, other, variance=variance, **arguments, draws=draws())
    assert torch.equal(entropy[0], beside[0])


def test_ignored_pixels_have_the_highest_entropy() -> None:
    def embed(pixels: Tensor) -> Tensor:
        return pixels[:, :, :, :4].flatten(1)  # the left half

    entropy = pixel_entropy(
        embed, torch.rand(2, 3, 8, 8), variance=8.0, rate=0.1, steps=80, draws=draws()
    )
    assert entropy[:, :, :4].max() < entropy[:, :, 4:].min()
    assert torch.equal(concepts(entropy), (torch.arange(8) < 4).expand(2, 8, 8))
    # The noise of a pixel is no stronger than the range of its values.
    assert entropy.max() < 0.5 * math.log(2 * math.pi * math.e)


def test_large_images_have_a_value_for_each_square() -> None:
    entropy = pixel_entropy(
        lambda p: p.mean((2, 3)), torch.rand(1, 3, 64, 64), variance=1.0, rate=0.1, steps=2,
        draws=draws(),
    )  # fmt: skip
    assert entropy.shape == (1, 64, 64)
    assert torch.equal(entropy[:, ::2, ::2], entropy[:, 1::2, 1::2])


def test_iou_counts_pixels() -> None:
    first = torch.tensor([[[1, 1], [0, 0]], [[0, 0], [0, 0]]], dtype=torch.bool)
    second = torch.tensor([[[1, 0], [1, 0]], [[0, 0], [0, 0]]], dtype=torch.bool)
    assert concept_iou(first, second) == pytest.approx(1 / 3)  # the second image has no concept
    visible = torch.tensor([[[1, 1], [0, 1]], [[1, 1], [1, 1]]], dtype=torch.bool)
    assert concept_iou(first, second, visible) == pytest.approx(1 / 2)
    assert concept_iou(first, first) == 1 and concept_iou(first[1:], second[1:]) is None


def test_views_show_the_pixels_at_their_places() -> None:
    pixels = 0.1 + 0.9 * torch.rand(20, 3, 16, 16, generator=draws())
    views = [random_view(pixels, draws(seed)) for seed in (1, 2)]
    for view in views:
        placed, visible = view.place(view.pixels[:, 0])
        assert torch.equal(placed[visible], pixels[:, 0][visible])
        assert not placed[~visible].any() and 0.5 < visible.float().mean() < 1
        black = int((view.pixels[:, 0] == 0).sum())  # as many as of the image are not in the crop
        assert black == int((~visible).sum())
    # A map that follows its image is steady between views.
    (one, shown), (other, also) = (v.place((v.pixels[:, 0] > 0.5).float()) for v in views)
    assert concept_iou(one > 0, other > 0, shown & also) == 1


# Networks and the command


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def crops(scenes: Callable[..., Path]) -> Path:
    return scenes(train=4, test=12) / "crops"


def test_network_reads_images_as_distillation_converts_them(run: Path) -> None:
    network = ComparedNetwork("kd", open_origin(str(run / "distill/kd")), torch.device("cpu"))
    pixels = torch.rand(5, 3, 24, 24)
    source = Preprocessing(24, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    change = conversion(source, SHOWN)
    assert change is not None
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (source.mean, source.std))
    assert torch.allclose(network.prepare(pixels), change((pixels - mean) / std), atol=1e-5)
    layers = network.layers(pixels)
    assert torch.allclose(layers.stages[-1].mean((2, 3)), layers.embedding, atol=1e-5)
    assert torch.equal(network.embed(pixels), layers.embedding)
    assert network.logits(pixels).shape == (5, 3) and network.classes == 3
    assert network.layer_names == ["layer1", "layer2", "layer3", "embedding"]


def result(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text())


def test_command_on_a_run(run: Path, crops: Path) -> None:
    assert main([str(run), "--data", str(crops), *FAST]) == 0
    folder = run / "representation"
    content = result(folder)
    values, parts = content["values"], content["values"]["parts"]
    assert list(values["networks"]) == ["teacher", "kd", "none"] and list(parts) == [
        "correlation", "tsne", "cka", "entropy",
    ]  # fmt: skip
    assert set(content["files"]) == {p.name for p in folder.glob("*.png")}
    assert all(content["measured"]["seconds"][name] > 0 for name in parts)
    page, text = ((run / f"report.{end}").read_text() for end in ("html", "md"))
    for one in (picture for of_part in content["pictures"].values() for picture in of_part):
        assert one["alt"] in page
        assert f"](<representation/{one['file']}>)" in text
    numbers = json.loads((run / "report.json").read_text())["values"]["representation"]
    assert numbers["parts"] == parts

    # Twice the same; a student that was trained anew is named.
    assert main([str(run), "--data", str(crops), *FAST]) == 0
    assert result(folder)["values"] == values
    stage = {"stage": "distill/kd", "fingerprint": "x", "values": {"label": "kd", "trial": 0},
             "measured": {}}  # fmt: skip
    for digest, is_new in ((values["networks"]["kd"]["sha256"], False), ("ab", True)):
        files = {"student.safetensors": {"sha256": digest}}
        sealed = {**stage, "files": files}
        (run / "distill/kd/result.json").write_text(json.dumps(seal(sealed)))
        write_report(run)
        page = (run / "report.html").read_text()
        assert ("Trained anew since this was measured: kd" in page) == is_new


def test_data_of_the_recipe_are_the_default(run: Path) -> None:
    few = ["--parts", "tsne", "--tsne-classes", "3", "--teacher", "none"]
    assert main([str(run / "distill/kd"), *few, *FAST]) == 0
    values = result(run / "representation")["values"]
    assert values["data"]["name"] == "digits" and list(values["networks"]) == ["none", "kd"]
    assert values["parts"]["tsne"]["classes"] == ["0", "1", "2"]


def test_a_network_is_like_itself(run: Path, crops: Path, tmp_path: Path) -> None:
    place, out = str(run / "distill/kd"), tmp_path / "out"
    assert main([place, place, "--data", str(crops), "--out", str(out), *FAST]) == 0
    parts = result(out)["values"]["parts"]
    student = "kd-2"
    assert parts["correlation"]["students"][student]["mean_absolute_difference"] == 0
    for kernel in ("linear", "rbf"):
        diagonal = parts["cka"]["students"][student][kernel]["diagonal"]
        assert all(one["cka"] == pytest.approx(1, abs=1e-6) for one in diagonal)
    assert parts["entropy"]["students"][student]["teacher_iou"] == 1
    assert (out / "report.html").is_file() and "kd-2" in (out / "report.md").read_text()


def test_batches_of_large_maps_are_small(
    run: Path, crops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "_MAP_BYTES", 4 * 16 * 16 * 16 * 5)  # five of the largest maps
    few = ["--parts", "cka", "--student", "kd", "--images", "12"]
    assert main([str(run), "--data", str(crops), *few, *FAST]) == 0
    assert result(run / "representation")["values"]["parts"]["cka"]["batches"] == [4, 4, 4]


def test_images_are_optimised_a_few_at_a_time(
    run: Path, crops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def remember(embed: Any, pixels: Tensor, **settings: Any) -> Tensor:
        sizes.append(len(pixels))
        return pixel_entropy(embed, pixels, **settings)

    monkeypatch.setattr(measure, "pixel_entropy", remember)
    monkeypatch.setattr(measure, "_OPTIMISED_TOGETHER", 2)
    few = ["--parts", "entropy", "--student", "kd"]
    assert main([str(run), "--data", str(crops), *few, *FAST]) == 0
    assert sizes == [2, 1] * 6  # two views and one again, of two networks


@pytest.fixture
def embedding_run(run: Path) -> Path:
    """A run whose teacher gives embeddings (N, D), on data whose labels training does not see."""
    network = models.build("resnet8", num_classes=0, seed=3)
    taps = discover(network, (3, 16, 16), "resnet8", embeds=True)
    architecture = {"name": "resnet8", "arguments": {}}
    described = model_files.describe(architecture, taps, (), SHOWN, metrics={}, fingerprint="")
    described |= {"method": None, "encoder_prefix": "", "label": "teacher"}
    model_files.save(run / "teacher/0", "teacher", network, described)
    (run / "resolved.yaml").write_text(
        (run / "resolved.yaml")
        .read_text()
        .replace("{name: digits}", "{name: digits, labels: false}")
    )
    return run


def test_a_network_that_gives_embeddings_has_no_correlations(embedding_run: Path) -> None:
    assert main([str(embedding_run), "--student", "kd", "--images", "40", *FAST]) == 0
    parts = result(embedding_run / "representation")["values"]["parts"]
    assert parts["correlation"] == {"skipped": "no logits in teacher"}
    assert len(parts["cka"]["students"]["kd"]["linear"]["matrix"]) == 4
    assert parts["tsne"]["classes"][0] == "class 0"  # of the labels that were hidden
    assert parts["entropy"]["networks"]["teacher"]["mean_entropy_nats"] < 1.42
    assert "Left out: no logits in teacher." in (embedding_run / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "has no 'crd'"),
        (["--entropy-steps", "0"], "--entropy-steps must be above 0"),
        (["--teacher", "teacher-9"], "has no 'teacher-9'"),
    ],
)
def test_mistakes_are_reported_in_words(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    student = [] if arguments else ["--student", "crd"]
    assert main([str(run), *student, *arguments]) == 2
    assert message in " ".join(capsys.readouterr().out.split())


def test_two_networks_need_data(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = run / "distill/kd"
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("student.json", "student.safetensors"):
        (alone / name).write_bytes((place / name).read_bytes())
    assert main([str(alone), str(alone)]) == 2
    assert main([str(alone)]) == 2
    errors = " ".join(capsys.readouterr().out.split())
    assert "give --data FOLDER" in errors and "is no run directory" in errors
