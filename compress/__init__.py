"""Turn a large vision model into a small one that can be shipped, and prove it.

The packages that a program may import are those in `__all__` below and the sibling packages
`export` and `eval`; in each of them the names in its `__all__`. Everything else is private.

    >>> from tempfile import mkdtemp
    >>> import torch
    >>> from torch import nn
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> from compress.data import Preprocessing
    >>> from compress.distiller import Distiller

A student and a teacher of one's own, and a DataLoader of images and labels:

    >>> def network(width):
    ...     head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
    ...     return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), *head)
    >>> images = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    >>> loader = DataLoader(TensorDataset(images, torch.arange(40) % 4), batch_size=10)

An epoch of attention transfer, the network that ships, its accuracy, and its files:

    >>> distiller = Distiller(
    ...     network(8), network(32), method="at", classes=["ant", "bee", "cat", "dog"],
    ...     preprocessing=Preprocessing(16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    ... )
    >>> folder = mkdtemp()
    >>> history = distiller.fit(loader, epochs=1, lr=0.05, directory=folder)
      student epoch 1/1: loss ...
    >>> sorted(history[0]["terms"])
    ['at', 'ce', 'soft']
    >>> distiller.deploy()(torch.zeros(1, 3, 16, 16)).shape
    torch.Size([1, 4])
    >>> 0 <= distiller.evaluate(loader)["top1_percent"] <= 100
    True
    >>> files = distiller.export_bundle(f"{folder}/bundle", test_loader=loader, int8=None)
      student.json names torch.nn.modules.container:Sequential, which is not in the bundle; ...
    >>> files["top1_agreement_percent"]
    100.0

`compress.distiller` shows a loop of one's own, `compress.methods` a loss alone.
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
