"""A detection job in detectron2's terms: its config and its list of images.

Plain values that need no detectron2.
"""

from typing import Any

from compress.distributed.collectives import world_size
from compress.errors import UserError
from eval.data.annotations import AnnotatedImage, DetectionData
from eval.data.masks import encode_segment
from eval.detection.c4 import ANCHOR_RATIOS, ANCHOR_SIZES, ROI_SIZE
from eval.detection.model import Design
from eval.transfer.context import TransferContext

_XYXY = 0  # detectron2's BoxMode.XYXY_ABS
_PRE_NMS = 6  # boxes before non-maximum suppression for each that is kept
_PRECISE_BATCHES = 200


def check_job(context: TransferContext, design: Design) -> None:
    """Refuse what this engine does not have, before anything is trained.

    Raises:
        UserError: names the setting.
    """
    settings = context.settings
    refused = {
        f"head: {design.head}": design.head == "two_fc",
        f"optimizer: {settings.optimizer}": settings.optimizer != "sgd",
        f"accumulate: {settings.accumulate}": settings.accumulate != 1,
        f"precision: {settings.precision}": settings.precision != "float32",
        f"{world_size()} processes": world_size() > 1,
    }
    for setting, is_set in refused.items():
        if is_set:
            raise UserError(
                f"engine: detectron2 does not take {setting} (it has head: c4, optimizer: sgd, no "
                "accumulation, float32, one process); take engine: torchvision, or run detectron2 "
                "itself on what `python -m export.detectron2` writes."
            )


def iterations_of(context: TransferContext, data: DetectionData) -> int:
    """Steps of the whole training: as many as the other engine makes."""
    settings = context.settings
    per_epoch = max(1, len(data.train) // settings.batch_size)
    return context.iterations or settings.epochs * per_epoch


def job_config(
    context: TransferContext, design: Design, data: DetectionData, *, flip: bool
) -> dict[str, Any]:
    """The job's own part of the config, without the schedule of the learning rate."""
    sizes = design.image_size if design.image_size is not None else 0  # 0: their own
    shorter = [sizes] if isinstance(sizes, int) else [*sizes]
    settings = context.settings
    iterations = iterations_of(context, data)
    return {
        "MODEL": {"DEVICE": str(context.device), **_model(design, len(data.class_names))},
        "INPUT": {
            "MIN_SIZE_TRAIN": shorter,
            "MIN_SIZE_TEST": shorter[-1],
            "MAX_SIZE_TRAIN": design.longest_side or 2 * max(shorter),
            "MAX_SIZE_TEST": design.longest_side or 2 * max(shorter),
            "RANDOM_FLIP": "horizontal" if flip else "none",
            "MASK_FORMAT": _mask_format(data),
        },
        "SOLVER": {
            "IMS_PER_BATCH": min(settings.batch_size, len(training_dicts(data))),
            "BASE_LR": float(settings.lr),
            "MOMENTUM": float(settings.momentum),
            "NESTEROV": settings.nesterov and settings.momentum > 0,
            "WEIGHT_DECAY": float(settings.weight_decay),
            "MAX_ITER": iterations,
        },
        # No more batches for the statistics of batch norm than the training itself had.
        "TEST": {"PRECISE_BN": {"NUM_ITER": min(_PRECISE_BATCHES, iterations)}},
    }


def _model(design: Design, classes: int) -> dict[str, Any]:
    test_proposals = design.test_proposals or design.proposals
    return {
        "MASK_ON": design.has_masks,
        "ANCHOR_GENERATOR": {
            "SIZES": [[*(design.anchor_sizes or ANCHOR_SIZES)]],
            "ASPECT_RATIOS": [[*map(float, design.anchor_ratios or ANCHOR_RATIOS)]],
        },
        "RPN": {
            "PRE_NMS_TOPK_TRAIN": _PRE_NMS * design.proposals,
            "PRE_NMS_TOPK_TEST": _PRE_NMS * test_proposals,
            "POST_NMS_TOPK_TRAIN": design.proposals,
            "POST_NMS_TOPK_TEST": test_proposals,
        },
        "ROI_HEADS": {
            "NUM_CLASSES": classes,
            "BATCH_SIZE_PER_IMAGE": design.rois_per_image,
        },
        "ROI_BOX_HEAD": {"POOLER_RESOLUTION": design.roi_size or ROI_SIZE},
    }


def _mask_format(data: DetectionData) -> str:
    """Polygons are drawn per region; run lengths take one bitmap per object."""
    lengths = any(
        isinstance(s, dict) for image in data.train if image.segments for s in image.segments
    )
    return "bitmask" if lengths else "polygon"


def training_dicts(data: DetectionData) -> list[dict[str, Any]]:
    """The training images as detectron2 lists them; those with nothing to learn are left out.

    Raises:
        UserError: that leaves none.
    """
    dicts = [
        dataset_dict(image, number, learnt=data.trains_on_ignored)
        for number, image in enumerate(data.train)
    ]
    kept = [one for one in dicts if one["annotations"]]
    if not kept:
        raise UserError(f"none of the {len(dicts)} training images has a box to learn from.")
    return kept


def dataset_dict(image: AnnotatedImage, number: int, *, learnt: bool) -> dict[str, Any]:
    """One image as detectron2 lists it.

    Args:
        learnt: boxes that evaluation ignores are there, too.
    """
    annotations = []
    for row, (box, label, ignored) in enumerate(
        zip(image.boxes.tolist(), image.labels.tolist(), image.ignored.tolist(), strict=True)
    ):
        if ignored and not learnt:
            continue
        annotation = {"bbox": box, "bbox_mode": _XYXY, "category_id": label - 1, "iscrowd": 0}
        if image.segments is not None:
            segment = image.segments[row]
            size = (image.height, image.width)
            is_polygon = isinstance(segment, list)
            annotation["segmentation"] = segment if is_polygon else encode_segment(segment, size)
        annotations.append(annotation)
    return {
        "file_name": str(image.path),
        "image_id": number,
        "height": image.height,
        "width": image.width,
        "annotations": annotations,
    }
