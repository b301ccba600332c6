"""The detection task by detectron2: Faster and Mask R-CNN in the C4 form of the MoCo protocol.

detectron2 is no dependency: it is imported here, when a recipe or a command asks for
`engine: detectron2`. It builds the detector, loads what `export.detectron2` writes, reads the
images, trains and detects; metrics and pictures of the detections are those of the other engine.

What differs from the papers' runs: the task's own schedule, sizes and numbers of regions; precise
batch norm sees at most as many batches as the training had. An interrupted training starts
again.
"""

import importlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.errors import UserError
from compress.seeding import seed_for, seeded
from compress.storage.files import write_text
from eval.data.annotations import DetectionData
from eval.detection.detectron2_job import check_job, job_config
from eval.detection.detectron2_training import detect, train_detector
from eval.detection.settings import DetectionSettings
from eval.transfer.context import SCRATCH, Start, TransferContext
from export.detectron2.command import config_text, expected_missing, full_name, write_network
from export.detectron2.config import config, merge


def run(
    context: TransferContext,
    start: Start,
    *,
    data: DetectionData,
    settings: DetectionSettings,
) -> dict[str, float]:
    """Fine-tune from one initialisation; metrics over the test images.

    The config, the weights that were loaded, the log of losses and the detector stay in the folder.

    Raises:
        UserError: detectron2 cannot be imported, or the job is none of its.
    """
    from eval.detection.task import score_detections

    _require()
    check_job(context, settings.design)
    with _repeatable(start.seed), warnings.catch_warnings():
        # Its own deprecated calls into torch, which no user can change.
        warnings.filterwarnings("ignore", module=r"(detectron2|fvcore|torch)\.")
        detector, cfg = _build(context, start, settings, data)
        train_detector(context, start, detector, cfg, data)
        detections = detect(detector, cfg, data.test)
    return score_detections(start, data, detections, settings)


def _require() -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("eval.detection.detectron2_heads")
    except ImportError as error:
        raise UserError(
            f"engine: detectron2 cannot import detectron2 ({error}); install it as its "
            "documentation says, or take engine: torchvision."
        ) from None


def _build(
    context: TransferContext, start: Start, settings: DetectionSettings, data: DetectionData
) -> tuple[nn.Module, Any]:
    """The detector with the student's weights, and detectron2's config of the job."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    weights = start.folder / "encoder.pth"
    network = start.origin.network(weights=start.init != SCRATCH, seed=start.seed)
    trunk = write_network(weights, network, start.student)
    content = config(trunk, start.origin.preprocessing, weights=str(weights))
    content = merge(content, job_config(context, settings.design, data, flip=settings.flip))
    written = start.folder / "detectron2.yaml"
    write_text(written, config_text(content))
    cfg = get_cfg()
    cfg.merge_from_file(str(written))
    with seeded(start.seed, "detection", "head"):
        detector: nn.Module = build_model(cfg)
    DetectionCheckpointer(detector).load(str(weights))
    check_loaded(detector.state_dict(), weights, mask=cfg.MODEL.MASK_ON)
    if settings.design.freeze_encoder:
        detector.get_submodule("backbone").freeze(4)  # type: ignore[operator]
        for block in list(detector.get_submodule("roi_heads.res5").children())[:-1]:
            block.freeze()  # type: ignore[operator]  # all but the extra norm
    return detector, cfg


def check_loaded(state: Mapping[str, Tensor], weights: Path, *, mask: bool) -> None:
    """Check that a detector has every tensor of the file, bit for bit, and lacks none but the new.

    detectron2 itself only logs what it could not place.

    Raises:
        UserError: names the first tensor that differs.
    """
    tensors = torch.load(weights, weights_only=True)["model"]
    placed = {full_name(name): tensor for name, tensor in tensors.items()}
    wrong = [
        name
        for name, tensor in placed.items()
        if name not in state or not torch.equal(state[name].cpu(), tensor)
    ]
    derived = ("pixel_mean", "pixel_std", "num_batches_tracked")
    missing = {name for name in state if not name.endswith(derived)} - {*placed}
    wrong += sorted(missing ^ {*expected_missing(mask=mask)})
    if wrong:
        raise UserError(f"{weights}: detectron2 did not load it as it should, first '{wrong[0]}'.")


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Seeds for detectron2's draws: torch's for regions, numpy's for sizes and mirroring."""
    before = np.random.get_state()
    np.random.seed(seed_for(seed, "detection", "detectron2") % 2**32)
    try:
        with seeded(seed, "detection", "detectron2"):
            yield
    finally:
        np.random.set_state(before)
