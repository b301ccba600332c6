"""Training and running a detector by detectron2; see `detectron2_engine`."""

from typing import Any

import torch
from torch import nn

from compress.errors import UserError
from eval.data.annotations import AnnotatedImage, DetectionData
from eval.data.masks import encode_masks
from eval.detection.detectron2_job import dataset_dict, training_dicts
from eval.transfer.context import Start, TransferContext

_LOGGED_EVERY = 20


def train_detector(
    context: TransferContext, start: Start, detector: nn.Module, cfg: Any, data: DetectionData
) -> None:
    """Fine-tune in place; `losses.jsonl` and `detector.pth` are written into the folder.

    Args:
        cfg: detectron2's config, which names the device.

    Raises:
        UserError: a loss became infinite.
    """
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.engine import SimpleTrainer, hooks
    from detectron2.solver import LRMultiplier, build_optimizer
    from detectron2.utils.events import JSONWriter
    from fvcore.common.param_scheduler import ParamScheduler

    class Course(ParamScheduler):  # type: ignore[misc]  # fvcore has no types
        """The task's schedule, as the other engine follows it."""

        def __call__(self, where: float) -> float:
            return context.settings.schedule(where)

    detector.train()
    optimizer = build_optimizer(cfg, detector)
    scheduler = LRMultiplier(optimizer, multiplier=Course(), max_iter=cfg.SOLVER.MAX_ITER)
    trainer = SimpleTrainer(detector, _loader(cfg, data, start.seed), optimizer)
    precise = _loader(cfg, data, start.seed + 1)
    log = JSONWriter(str(start.folder / "losses.jsonl"))
    trainer.register_hooks(
        [
            hooks.LRScheduler(optimizer, scheduler),
            hooks.PreciseBN(0, detector, precise, cfg.TEST.PRECISE_BN.NUM_ITER),
            hooks.PeriodicWriter([log], period=_LOGGED_EVERY),
        ]
    )
    try:
        trainer.train(0, cfg.SOLVER.MAX_ITER)
    except FloatingPointError as error:
        raise UserError(
            f"detection, {start.init}: {str(error).splitlines()[0]} A smaller learning rate helps."
        ) from None
    DetectionCheckpointer(detector, str(start.folder)).save("detector")


def _loader(cfg: Any, data: DetectionData, seed: int) -> Any:
    """Endless batches of the training images; in this process, whose seeds are set."""
    from detectron2.data import DatasetMapper, build_detection_train_loader
    from detectron2.data.samplers import TrainingSampler

    dicts = training_dicts(data)
    return build_detection_train_loader(
        dicts,
        mapper=DatasetMapper(cfg, is_train=True),
        sampler=TrainingSampler(len(dicts), seed=seed),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        num_workers=0,
    )


@torch.no_grad()
def detect(
    detector: nn.Module, cfg: Any, images: tuple[AnnotatedImage, ...]
) -> list[dict[str, Any]]:
    """The detections of every image in the form of `inference.detect`."""
    from detectron2.data import DatasetMapper

    detector.eval()
    mapper = DatasetMapper(cfg, is_train=False)
    detections = []
    for number, image in enumerate(images):
        (output,) = detector([mapper(dataset_dict(image, number, learnt=False))])
        instances = output["instances"].to("cpu")
        detection = {
            "boxes": instances.pred_boxes.tensor,
            "labels": instances.pred_classes + 1,
            "scores": instances.scores,
        }
        if instances.has("pred_masks"):
            detection["segments"] = encode_masks(instances.pred_masks)
        detections.append(detection)
    return detections
