"""The detection task: fine-tune Faster or Mask R-CNN from each init, report average precision."""

import importlib
from functools import partial
from pathlib import Path
from typing import Any, Literal

from compress.comparison.bootstrap import ImageMetrics
from compress.distributed.collectives import on_main_process
from compress.errors import UserError
from eval.data.annotations import DetectionData
from eval.data.batches import KeyedBatches
from eval.data.detection import DATASETS
from eval.detection.examples import example, to_device
from eval.detection.inference import detect
from eval.detection.metrics import BOX_METRICS, Metric, mask_average_precision
from eval.detection.model import Design, Detector, DetectorLoss, Head, build_detector
from eval.detection.resampling import MATCHES, weighted_precision
from eval.detection.saved import (
    DETECTIONS,
    GROUND_TRUTH,
    read_detections,
    write_detections,
    write_ground_truth,
)
from eval.detection.settings import DetectionSettings, Engine
from eval.transfer.context import (
    SCRATCH,
    Start,
    TransferContext,
    compare_inits,
    fine_tune,
    open_entry,
    result,
    student_of,
)
from eval.transfer.paired import bootstrap
from eval.transfer.pictures import draw_detections

__all__ = ["DATASETS", "detection"]

_PICTURED = 4


def detection(
    context: TransferContext,
    *,
    detector: Detector = "faster_rcnn",
    engine: Engine = "torchvision",
    metric: Metric = "coco",
    head: Head = "auto",
    image_size: int | tuple[int, ...] | None = None,
    longest_side: int | None = None,
    stride: int = 4,
    pool_at: Literal["map", "stem"] = "map",
    anchor_sizes: tuple[int, ...] | None = None,
    anchor_ratios: tuple[float, ...] | None = None,
    rois_per_image: int = 16,
    roi_size: int | None = None,
    proposals: int = 50,
    test_proposals: int | None = None,
    head_width: int = 128,
    flip: bool = False,
    freeze_encoder: bool = False,
) -> dict[str, Any]:
    """Fine-tune and evaluate every init.

    Args:
        detector: mask_rcnn also predicts masks; its data needs outlines.
        engine: detectron2 trains and evaluates with that library, where it is installed.
        metric: average precision of boxes as COCO or as PASCAL VOC 2007 has it; masks: COCO's.
        head: c4 is the papers' form for ResNets of torchvision's and timm's (layer4 runs on every
            region), two_fc two fully connected layers; auto takes c4 where it is possible, and is
            refused where not all inits would get the same.
        image_size: shorter side in pixels to which images are scaled; of several one is drawn for
            each training image, and the last is the test images'; None keeps their size.
        longest_side: pixels that the longer side does not pass; twice `image_size` by default.
        stride: of two_fc, smallest stride of the map; an encoder's finer map is pooled to it.
        pool_at: of two_fc, where: the map itself, or behind the first convolution (far cheaper).
        anchor_sizes, anchor_ratios: side in pixels and height / width of the anchors; by default
            32 to 512 and 0.5, 1, 2 for c4, 16, 24 and 1, 2 for two_fc.
        rois_per_image: regions per image that train the box head.
        roi_size: side of a region's crop of the map; by default 14 for c4, 7 for two_fc.
        proposals: regions per image that survive non-maximum suppression while training.
        test_proposals: the same in testing; by default as many.
        head_width: of two_fc, units of its layers.
        flip: mirror training images at random; wrong where left and right differ in meaning.
        freeze_encoder: the encoder does not learn, and its batch norms keep their statistics.
    """
    arguments = locals()
    design = Design(**{key: arguments[key] for key in Design.__dataclass_fields__})
    return _compare(context, DetectionSettings(design, engine, metric, flip))


def _compare(context: TransferContext, settings: DetectionSettings) -> dict[str, Any]:
    """The `values` of the stage: every init trained and measured alike."""
    on_detectron2 = settings.engine == "detectron2"
    head = "c4" if on_detectron2 else common_head(context, settings.design)
    data = open_entry(context, DATASETS)
    if settings.design.has_masks:
        check_masks(data)
    run = _detectron2_run() if on_detectron2 else _run_torchvision
    has_masks = settings.design.has_masks
    write_ground_truth(context.folder / GROUND_TRUTH, data, masks=has_masks)
    rows = compare_inits(
        context,
        partial(run, context, data=data, settings=settings),
        partial(bootstrap, partial(_read_metrics, data, settings.metric), seed=context.seed),
    )
    return result(
        context,
        rows,
        protocol=settings.protocol(head),
        headline="ap50_percent",
        train_images=len(data.train),
        test_images=len(data.test),
        pictures=_pictures(context),
        legend="Blue: true boxes. Dark red: true boxes that no detection of their class found "
        "(IoU of 0.5). Orange: detections with a score of at least 0.5.",
    )


def _detectron2_run() -> Any:
    """Import the engine only where it is needed: detectron2 may not be installed."""
    return importlib.import_module("eval.detection.detectron2_engine").run


def common_head(context: TransferContext, design: Design) -> str:
    """The head that every init gets.

    Raises:
        UserError: they would get different ones, which compares heads, not encoders; or one of them
            does not fit the head that the settings name.
    """
    heads = {
        init: design.head_of(context.origin(student_of(context, init)).network(weights=False))
        for init in context.inits
    }
    if len({*heads.values()}) > 1:
        each = ", ".join(f"{init} {head}" for init, head in heads.items())
        raise UserError(
            f"detection: head: auto would give the inits different heads ({each}), so that they "
            "cannot be compared; say head: two_fc (--head two_fc)."
        )
    return next(iter(heads.values()))


def check_masks(data: DetectionData) -> None:
    """Every object of a mask detector's data needs an outline.

    Raises:
        UserError: one has none.
    """
    for image in (*data.train, *data.test):
        if image.segments is None:
            raise UserError(
                f"{image.path} has boxes without outlines, which detector: mask_rcnn learns from; "
                "COCO's format gives them as `segmentation`."
            )


def _pictures(context: TransferContext) -> list[str]:
    """The pictures of each init's first seed, below the entry's folder."""
    names = (f"{init}/seed-{context.seed}/{init}.png" for init in context.inits)
    return sorted(name for name in names if (context.folder / name).is_file())


def _run_torchvision(
    context: TransferContext, start: Start, *, data: DetectionData, settings: DetectionSettings
) -> dict[str, float]:
    """Fine-tune from one initialisation; metrics over the test images."""
    design = settings.design
    network = start.origin.network(weights=start.init != SCRATCH, seed=start.seed)
    detector = build_detector(
        design, start.encoder, network, classes=len(data.class_names), seed=start.seed
    )
    batches = KeyedBatches(
        count=len(data.train),
        batch_size=context.settings.batch_size,
        seed=start.seed,
        flip=settings.flip,
        read=lambda index, mirrored, _: example(data, index, mirrored, masks=design.has_masks),
        collate=lambda examples: to_device(examples, context.device),
    )
    fine_tune(context, start, DetectorLoss(detector), batches, "detection")
    detections = detect(detector, data.test, context.settings.batch_size, context.device)
    return on_main_process(lambda: score_detections(start, data, detections, settings))


def _read_metrics(data: DetectionData, metric: Metric, folder: Path) -> ImageMetrics | None:
    """The box metrics of a training by image; None where it left no detections."""
    try:
        rows = read_detections(folder / DETECTIONS, data.test)
    except UserError:
        return None
    matches = MATCHES[metric](data.test, rows, len(data.class_names))
    return ImageMetrics(
        len(data.test), lambda weights: weighted_precision(matches, weights, metric)
    )


def score_detections(
    start: Start,
    data: DetectionData,
    detections: list[dict[str, Any]],
    settings: DetectionSettings,
) -> dict[str, float]:
    """Metrics over the test images, the first of which are drawn into the training's folder.

    All detections are saved there, see `eval.detection.saved`.
    """
    picture = start.folder / f"{start.init}.png"
    draw_detections(picture, data.test[:_PICTURED], detections[:_PICTURED], data.class_names)
    write_detections(start.folder / DETECTIONS, detections)
    classes = len(data.class_names)
    metrics = BOX_METRICS[settings.metric][0](data.test, detections, classes)
    if settings.design.has_masks:
        metrics |= mask_average_precision(data.test, detections, classes)
    return metrics
