"""Turn a large vision model into a small one that can be shipped, and prove it.

The packages that a program may import are those in `__all__` below and the sibling packages
`export` and `eval`; in each of them the names in its `__all__`. Everything else is private.

    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> import torch
    >>> from torch import nn
    >>> from compress.data import ImageBatches, evaluation_batches, open_data
    >>> from compress.distill import Distillation
    >>> from compress.engine import TrainSettings, train
    >>> from compress.methods import METHODS, LossWeights, MethodContext, teacher_context
    >>> from compress.taps import discover
    >>> from compress.tasks import Classification

A student and a teacher of one's own read digits and train for an epoch of attention transfer:

    >>> def network(width):
    ...     head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    ...     return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), *head)
    >>> data, cpu = open_data({"name": "digits", "train_images": 100}), torch.device("cpu")
    >>> student, teacher = network(8), network(32)
    >>> student_taps, teacher_taps = (discover(n, (3, 16, 16), "mine") for n in (student, teacher))
    >>> context = MethodContext(
    ...     student_taps, (teacher_context(teacher, teacher_taps),), num_classes=10,
    ...     train_size=100, labels=data.train.labels, batch_size=20, steps_per_epoch=5, epochs=1,
    ... )
    >>> method, weights = METHODS["at"](context), LossWeights(ce=1, kd=1, method=1000)
    >>> module = Distillation(
    ...     student, [teacher], method, weights, Classification(), kd_temperature=4
    ... )
    >>> batches = ImageBatches(
    ...     data.train, data.preprocessing, batch_size=20, augment=["crop_flip"], seed=0, device=cpu
    ... )
    >>> where = {"directory": Path(mkdtemp()), "role": "student", "seed": 0, "device": cpu}
    >>> history = train(module, batches, TrainSettings(epochs=1, lr=0.05), **where)
      student epoch 1/1: loss ...
    >>> sorted(history[0]["terms"])
    ['at', 'ce', 'soft']
    >>> test = evaluation_batches(data.test, 100, data.preprocessing, cpu)
    >>> 0 <= Classification().evaluate(method.deploy(student), test)["top1_percent"] <= 100
    True
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

__version__ = "0.1.0"

# Packages; `import compress` alone imports none of them, nor torch.
__all__ = [
    "accounting",
    "comparison",
    "data",
    "distill",
    "distiller",
    "engine",
    "errors",
    "methods",
    "model_files",
    "models",
    "onnx",
    "recipe",
    "reporting",
    "taps",
    "tasks",
    "teacher",
]


def import_lazily(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package that imports a public name when it is first used.

    `modules` maps each such name to its module. A command in the package then prints its --help
    without waiting for torch.
    """

    def get_attribute(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(importlib.import_module(modules[name]), name)

    return get_attribute
