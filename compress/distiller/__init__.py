"""Distillation in a program of one's own: own networks, own DataLoader, a method by name.

A student and a teacher read digits, and the student becomes a bundle that runs anywhere:

>>> import tempfile
>>> from pathlib import Path
>>> import torch
>>> from torch.utils.data import DataLoader, TensorDataset
>>> from compress.data import Preprocessing
>>> from compress.distiller import Distiller
>>> from compress.models import build
>>> images, labels = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8), torch.arange(40) % 4
>>> loader = DataLoader(TensorDataset(images, labels), batch_size=10, shuffle=True)
>>> distiller = Distiller(
...     build("resnet8", num_classes=4), build("resnet14", num_classes=4), method="at", classes=4,
...     preprocessing=Preprocessing(16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
... )

A loop of one's own asks for the loss of each batch:

>>> distiller.prepare(loader, epochs=1)
>>> optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05)
>>> for images, labels in loader:
...     loss, terms = distiller.losses(images, labels)
...     optimizer.zero_grad()
...     loss.backward()
...     optimizer.step()
...     distiller.after_step()
>>> sorted(terms), distiller.deploy()(torch.zeros(1, 3, 16, 16)).shape
(['at', 'ce', 'soft'], torch.Size([1, 4]))

`fit` is this project's own loop, which resumes and has schedules, phases and optimisers of a
method's own; see the example of `compress`. A loss alone is a function, see `compress.methods`.
"""

from typing import TYPE_CHECKING

from compress import import_lazily

if TYPE_CHECKING:
    from compress.distiller.distiller import Distiller, Losses
    from compress.distiller.loader import Indexed

__all__ = ["Distiller", "Indexed", "Losses"]

_MODULES = {
    "Distiller": "compress.distiller.distiller",
    "Indexed": "compress.distiller.loader",
    "Losses": "compress.distiller.distiller",
}

# Whoever imports the package for a name's type need not wait for torch.
__getattr__ = import_lazily(__name__, _MODULES)
