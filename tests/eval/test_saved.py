"""Saved predictions: official tools compute the reported numbers from the files alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO, COCOeval_faster
from PIL import Image
from sklearn.metrics import jaccard_score

from compress.tasks.confusion import confusion_matrix, segmentation_metrics
from eval.data import IGNORE_INDEX, AnnotatedImage, DetectionData
from eval.data.masks import encode_masks
from eval.detection import average_precision, mask_average_precision, voc_average_precision
from eval.detection.resampling import MATCHES, weighted_precision
from eval.detection.saved import read_detections, write_detections, write_ground_truth
from eval.segmentation.saved import (
    is_kept,
    mask_png,
    read_metrics,
    write_confusion,
    write_masks,
)
from eval.transfer.paired import ImageMetrics, bootstrap

SIDE, CLASSES = 40, 3
METRICS = {"coco": average_precision, "voc07": voc_average_precision}


def boxes(generator: torch.Generator, count: int) -> torch.Tensor:
    corners = torch.rand(count, 2, generator=generator) * 20
    return torch.cat([corners, corners + 4 + torch.rand(count, 2, generator=generator) * 12], 1)


def scene(number: int) -> tuple[AnnotatedImage, dict[str, Any]]:
    """Objects, some of them ignored, and detections near them, beside them and of other classes."""
    generator = torch.Generator().manual_seed(number)
    truth = boxes(generator, 4 + number % 3)
    labels = torch.randint(1, CLASSES + 1, (len(truth),), generator=generator)
    outlines = [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in truth.tolist()]
    image = AnnotatedImage(
        Path(f"image-{number}.png"), SIDE, SIDE, truth, labels,
        torch.rand(len(truth), generator=generator) < 0.2, tuple(outlines),
    )  # fmt: skip
    near = truth.repeat(3, 1) + torch.randn(3 * len(truth), 4, generator=generator) * 1.5
    places = torch.cat([near.clamp(0, SIDE), boxes(generator, 4)])
    places = torch.cat([places[:, :2], torch.maximum(places[:, 2:], places[:, :2] + 1)], 1)
    said = torch.cat([labels.repeat(3), torch.randint(1, CLASSES + 1, (4,), generator=generator)])
    scores, order = torch.rand(len(places), generator=generator).sort(descending=True)
    grid = torch.arange(SIDE)
    inside = [
        (grid[:, None] >= y0) & (grid[:, None] < y1) & (grid >= x0) & (grid < x1)
        for x0, y0, x1, y1 in places[order].tolist()
    ]
    segments = encode_masks(torch.stack(inside))
    detections = {"boxes": places[order], "labels": said[order], "scores": scores}
    return image, {**detections, "segments": segments}


IMAGES, DETECTIONS = zip(*map(scene, range(6)), strict=True)
DATA = DetectionData(("one", "two", "three"), (), IMAGES, trains_on_ignored=False)


def test_average_precision_is_recomputed_from_the_files(tmp_path: Path) -> None:
    write_ground_truth(tmp_path / "ground_truth.json", DATA, masks=True)
    write_detections(tmp_path / "detections.json", DETECTIONS)
    expected = average_precision(IMAGES, DETECTIONS, CLASSES)
    expected |= mask_average_precision(IMAGES, DETECTIONS, CLASSES)
    for kind, prefix in (("bbox", ""), ("segm", "mask_")):
        quiet = {"print_function": lambda *_: None}
        truth = COCO(str(tmp_path / "ground_truth.json"), **quiet)
        detections = truth.loadRes(str(tmp_path / "detections.json"))
        evaluation = COCOeval_faster(truth, detections, iouType=kind, **quiet)
        evaluation.run()
        for place, key in enumerate(("ap_percent", "ap50_percent", "ap75_percent")):
            assert 100 * evaluation.stats[place] == pytest.approx(expected[prefix + key]), key
    content = json.loads((tmp_path / "ground_truth.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["one", "two", "three"]
    assert content["images"][5]["file_name"] == "image-5.png"


def test_of_many_detections_the_best_are_kept_and_of_none_numbers(tmp_path: Path) -> None:
    spoilt = {**DETECTIONS[0], "boxes": DETECTIONS[0]["boxes"].clone()}
    spoilt["boxes"][0] = torch.nan
    write_detections(tmp_path / "detections.json", [spoilt, *DETECTIONS[1:]], most=10)
    kept = [row for rows in read_detections(tmp_path / "detections.json", IMAGES) for row in rows]
    scores = [s for d in (spoilt, *DETECTIONS[1:]) for s in d["scores"].tolist()]
    best = sorted(scores[1:], reverse=True)[:10]
    assert sorted((row["score"] for row in kept), reverse=True) == best


@pytest.mark.parametrize("metric", ["coco", "voc07"])
@pytest.mark.parametrize("weights", [[1] * 6, [2, 0, 1, 0, 3, 1], [0, 0, 0, 0, 0, 2]])
def test_weighted_precision_is_that_of_repeated_images(
    tmp_path: Path, metric: Any, weights: list[int]
) -> None:
    write_detections(tmp_path / "detections.json", DETECTIONS)
    rows = read_detections(tmp_path / "detections.json", IMAGES)
    matches = MATCHES[metric](IMAGES, rows, CLASSES)
    precision = weighted_precision(matches, np.array(weights), metric)
    repeated = [n for n, count in enumerate(weights) for _ in range(count)]
    images, detections = ([several[n] for n in repeated] for several in (IMAGES, DETECTIONS))
    assert precision == pytest.approx(METRICS[metric](images, detections, CLASSES), abs=1e-6)


def test_a_detection_takes_an_object_before_the_crowd_that_it_overlaps_more() -> None:
    truth = torch.tensor([[0.0, 0.0, 10.0, 12.0], [0.0, 0.0, 10.0, 10.0]])
    labels, ignored = torch.tensor([1, 1]), torch.tensor([True, False])
    image = AnnotatedImage(Path("a.png"), SIDE, SIDE, truth, labels, ignored)
    box = [0.0, 0.0, 10.0, 11.5]  # IoU 0.87 with the object, all of it inside the crowd
    detection = {"boxes": torch.tensor([box]), "labels": labels[:1], "scores": torch.tensor([0.9])}
    rows = [[{"category_id": 1, "bbox": box, "score": 0.9}]]
    precision = weighted_precision(MATCHES["coco"]([image], rows, 1), np.array([1]), "coco")
    assert precision == pytest.approx(average_precision([image], [detection], 1))
    assert precision["ap_percent"] == pytest.approx(80)


def test_mean_iou_is_recomputed_from_the_files(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, CLASSES, (4, 9, 7), generator=generator)
    said = torch.where(torch.rand(4, 9, 7, generator=generator) < 0.6, truth, 2)
    truth[:, 0] = IGNORE_INDEX
    each = [
        confusion_matrix(t, p, classes=CLASSES, ignore_index=IGNORE_INDEX)
        for t, p in zip(truth, said, strict=True)
    ]
    write_masks(tmp_path, [(f"{n}.png", mask_png(mask, CLASSES)) for n, mask in enumerate(said)])
    write_confusion(tmp_path / "confusion.npz", torch.stack(each))
    metrics = read_metrics(tmp_path)
    assert metrics is not None and metrics.images == 4
    masks = np.stack([np.array(Image.open(tmp_path / f"masks/{n}.png")) for n in range(4)])
    for weights in ([1, 1, 1, 1], [0, 2, 1, 1]):
        repeated = [n for n, count in enumerate(weights) for _ in range(count)]
        valid = (truth[repeated] != IGNORE_INDEX).numpy()
        expected = jaccard_score(
            truth[repeated].numpy()[valid], masks[repeated][valid], average="macro"
        )
        weighted = metrics.of_weights(np.array(weights))
        assert weighted["miou_percent"] == pytest.approx(100 * expected)
    assert segmentation_metrics(sum(each)) == metrics.of_weights(np.ones(4, dtype=np.int64))


def test_of_many_masks_an_even_part_is_kept() -> None:
    assert [n for n in range(7) if is_kept(n, 7, most=7)] == list(range(7))
    assert [n for n in range(9) if is_kept(n, 9, most=4)] == [0, 3, 6]


def of_values(values: np.ndarray[Any, Any]) -> ImageMetrics:
    """A metric that is a mean over images, for which the paired interval is known."""
    return ImageMetrics(len(values), lambda w: {"mean": float(w @ values / w.sum())})


def test_the_bootstrap_of_a_mean_is_the_paired_interval() -> None:
    generator = np.random.default_rng(0)
    common = generator.normal(50, 20, 80)  # what images have in common says nothing
    trainings = {
        Path("own"): of_values(common + 2 + generator.normal(0, 3, 80)),
        Path("other"): of_values(common + generator.normal(0, 3, 80)),
    }
    paired = bootstrap(trainings.get, [Path("own")], [Path("other")], seed=0)
    again = bootstrap(trainings.get, [Path("own")], [Path("other")], seed=0)
    assert paired == again and paired is not None
    ones = np.ones(80, dtype=np.int64)
    own, other = (t.of_weights(ones)["mean"] for t in trainings.values())
    half = 1.96 * np.sqrt(2) * 3 / np.sqrt(80)
    low, high = paired["mean"]["interval"]
    assert paired["mean"]["difference"] == pytest.approx(own - other)
    assert (high - low) / 2 == pytest.approx(half, rel=0.25)
    assert bootstrap(trainings.get, [Path("own")], [Path("missing")], seed=0) is None


def test_of_several_seeds_the_interval_holds_their_spread() -> None:
    values = np.random.default_rng(0).normal(0, 1, 50)
    folders = {Path(str(n)): of_values(values + n) for n in (0, 2, 4)}
    folders[Path("other")] = of_values(values)
    paired = bootstrap(folders.get, [*folders][:3], [Path("other")] * 3, seed=0, resamples=50)
    assert paired is not None
    # Images differ by the same everywhere, so that only the seeds vary: 2 +- t(2) sqrt(4 / 3).
    assert paired["mean"]["difference"] == pytest.approx(2)
    assert paired["mean"]["interval"] == pytest.approx(
        [2 - 4.303 * 1.1547, 2 + 4.303 * 1.1547], 1e-3
    )
    assert paired["mean"]["p_value"] > 0.05
