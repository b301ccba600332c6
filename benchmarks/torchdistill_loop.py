"""The same steps through torchdistill, as its example of image classification trains.

    TORCHDISTILL/bin/python benchmarks/torchdistill_loop.py METHOD FOLDER [--device D]

is a candidate of step.py, see turns.py; it runs in an environment that has torchdistill (1.1.5 was
used), torch, torchvision and what `compress.models` imports. Its own are the DistillationBox with
the forward hooks, the losses KDLoss and CRDLoss, the dataset wrapper and the embeddings of CRD, the
optimiser, the meters and the loop of its example (examples/torchvision/image_classification.py).
SimKD has no loss of its own there: it is composed of what torchdistill offers for that, networks
cut by `sequential`, an adaptation module and MSELoss. The networks are ours, the images those of
plain_loop.py, without their index. A teacher stays in the mode in which it is given; here eval.
"""

import argparse
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `compress` is not installed there

import pair
from pair import NEGATIVES, OPTIMIZER, TEMPERATURE, WEIGHTS
from PIL import Image
from plain_terms import Projector
from torch.utils.data import Dataset, RandomSampler
from torchdistill.core.distillation import get_distillation_box
from torchdistill.misc.log import MetricLogger, SmoothedValue
from torchdistill.models.registry import register_adaptation_module
from torchvision import transforms
from turns import paced

WORKERS, LOG_EVERY = 2, 100
IMAGES_ONLY = {"forward_proc": "forward_batch_only"}
OUTPUT = {"module_path": ".", "io": "output"}
TRUNK = ["conv1", "bn1", "relu", "layer1", "layer2", "layer3"]


class Pictures(Dataset[tuple[Any, int]]):
    """A data set as torchvision's: image and label."""

    def __init__(self, data: pair.Data) -> None:
        self.pixels, self.targets = data.pixels, data.labels.tolist()
        self.classes = sorted(set(self.targets))
        augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        normalise = [transforms.ToTensor(), transforms.Normalize(pair.MEAN, pair.STD)]
        self.transform = transforms.Compose([*augment, *normalise])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.targets[index]


@register_adaptation_module(key="simkd_projector")
def _projector(width_s: int, width_t: int) -> torch.nn.Module:
    return Projector(width_s, width_t).transfer


def kd() -> dict[str, Any]:
    """Teacher, student and terms of KDLoss, which holds the hard labels too."""
    ce, soft, _ = WEIGHTS["kd"]
    loss: dict[str, Any] = {"temperature": TEMPERATURE, "alpha": ce, "beta": soft}
    for who in ("student", "teacher"):
        loss |= {f"{who}_module_path": ".", f"{who}_module_io": "output"}
    return {
        "teacher": {**IMAGES_ONLY, "requires_grad": False},
        "student": IMAGES_ONLY,
        "terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": loss}, "weight": 1.0}},
    }


def crd(images: int, width_s: int, width_t: int) -> dict[str, Any]:
    """The same of CRDLoss and cross entropy; the teacher's embedding learns."""
    ce, _, own = WEIGHTS["crd"]
    memory = {
        "student_norm_module_path": "normalizer",
        "student_empty_module_path": "empty",
        "teacher_norm_module_path": "normalizer",
        "input_size": 128,
        "output_size": images,
        "num_negative_samples": NEGATIVES,
        "num_samples": images,
    }
    wrapper = {"input": OUTPUT | {"is_from_teacher": False}, "target": {"uses_label": True}}
    hard = {"criterion": {"key": "CrossEntropyLoss", "kwargs": {}}, "weight": ce}
    return {
        "teacher": {**_embedded(width_t), "frozen_modules": ["model"]},
        "student": _embedded(width_s),
        "terms": {
            "ce": {**hard, "criterion_wrapper": {"key": "SimpleLossWrapper", "kwargs": wrapper}},
            "crd": {"criterion": {"key": "CRDLoss", "kwargs": memory}, "weight": own},
        },
    }


def _embedded(width: int) -> dict[str, Any]:
    linear = {"in_features": width, "out_features": 128, "bias": True}
    embedding = {"input_module_path": "model.avgpool", "linear_kwargs": linear}
    return {
        "forward_proc": "forward_batch_supp_dict",
        "auxiliary_model_wrapper": {"key": "Linear4CRD", "kwargs": embedding},
        "forward_hook": {"input": ["empty"], "output": ["model.avgpool", "normalizer"]},
    }


def simkd(width_s: int, width_t: int) -> dict[str, Any]:
    """The same of two trunks, a projector and the mean squared error."""
    projector = {"width_s": width_s, "width_t": width_t}
    ends = [OUTPUT | {"is_from_teacher": it} for it in (False, True)]
    wrapper = {"input": ends[0], "target": ends[1]}
    return {
        "teacher": {**IMAGES_ONLY, "requires_grad": False, "sequential": TRUNK},
        "student": {
            **IMAGES_ONLY,
            "adaptations": {"projector": {"key": "simkd_projector", "kwargs": projector}},
            "sequential": [*TRUNK, "+projector"],
        },
        "terms": {
            "simkd": {
                "criterion": {"key": "MSELoss", "kwargs": {}},
                "criterion_wrapper": {"key": "SimpleLossWrapper", "kwargs": wrapper},
                "weight": WEIGHTS["simkd"][2],
            }
        },
    }


def box(method: str, data: pair.Data, networks: tuple[Any, Any], device: str) -> Any:
    """Its DistillationBox for a method on a pair of student and teacher."""
    student, teacher = networks
    widths, images = (student.fc.in_features, teacher.fc.in_features), {"train": Pictures(data)}
    parts = {"kd": kd, "simkd": lambda: simkd(*widths)}
    parts["crd"] = lambda: crd(len(data.labels), *widths)
    stage, where = parts[method](), torch.device(device)
    loader: dict[str, Any] = {
        "dataset_id": "train",
        "sampler": {"class_or_func": RandomSampler},
        "kwargs": {"batch_size": pair.BATCH, "num_workers": WORKERS},
    }
    if method == "crd":
        drawn = {"num_negative_samples": NEGATIVES, "mode": "exact", "ratio": 1.0}
        loader["dataset_wrapper"] = {"key": "CRDDatasetWrapper", "kwargs": drawn}
    config = {
        "num_epochs": 240,
        "train_data_loader": loader,
        "teacher": stage["teacher"],
        "student": stage["student"],
        "optimizer": {"key": "SGD", "kwargs": dict(OPTIMIZER)},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": stage["terms"]}},
    }
    return get_distillation_box(teacher, student, images, config, where, None, False, 1)


def steps(training_box: Any, device: str) -> Iterator[None]:
    """Steps without end, epoch after epoch, as its example makes them."""
    for epoch in range(10**6):
        training_box.pre_epoch_process(epoch=epoch)
        meters = MetricLogger(delimiter="  ")
        meters.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
        meters.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
        loader = training_box.train_data_loader
        for images, targets, extra in meters.log_every(loader, LOG_EVERY, f"Epoch: [{epoch}]"):
            start = time.time()
            images, targets = images.to(device), targets.to(device)
            loss = training_box.forward_process(images, targets, extra)
            training_box.post_forward_process(loss=loss)
            meters.update(loss=loss.item(), lr=training_box.optimizer.param_groups[0]["lr"])
            meters.meters["img/s"].update(len(images) / (time.time() - start))
            if torch.isnan(loss) or torch.isinf(loss):
                raise ValueError(f"the loss is {loss}")
            yield
        training_box.post_epoch_process()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=WEIGHTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    torch.manual_seed(0)
    data, networks, device = (
        pair.read(options.folder),
        pair.networks(options.folder),
        options.device,
    )
    run = steps(box(options.method, data, networks, device), device)
    for _ in paced(lambda: pair.settled(device)):
        next(run)


if __name__ == "__main__":
    main()
