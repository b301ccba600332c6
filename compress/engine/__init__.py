"""The training loop, its optimisers, checkpoints, compiling and lockstep.

>>> import tempfile
>>> from pathlib import Path
>>> import torch
>>> from torch import nn
>>> from compress.engine import TrainSettings, train
>>> class Regression(nn.Module):
...     def __init__(self):
...         super().__init__()
...         self.linear = nn.Linear(1, 1)
...     def forward(self, batch):
...         return {"mse": (self.linear(batch) - 2 * batch).square().mean()}
>>> class Batches:
...     def __len__(self):
...         return 4
...     def epoch(self, epoch):
...         return iter(torch.linspace(-1, 1, 32).view(4, 8, 1))
>>> settings, folder = TrainSettings(epochs=2, lr=0.01), Path(tempfile.mkdtemp())
>>> history = train(
...     Regression(), Batches(), settings, directory=folder, role="regression", seed=0,
...     device=torch.device("cpu"),
... )
  regression epoch 1/2: loss ...
  regression epoch 2/2: loss ...
>>> [row["epoch"] for row in history], history[-1]["loss"] < history[0]["loss"]
([1, 2], True)

A training that is run again in its directory is not repeated, and one that was interrupted
continues after its last whole epoch.
"""

from compress.engine.checkpoint import Checkpoint, Selection, trained_state
from compress.engine.lockstep import drain, in_lockstep
from compress.engine.loop import History, OptimizerStep, Position, Training, autocast, train
from compress.engine.optimization import OPTIMIZERS, SCHEDULES, TrainSettings

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Checkpoint",
    "History",
    "OptimizerStep",
    "Position",
    "Selection",
    "TrainSettings",
    "Training",
    "autocast",
    "drain",
    "in_lockstep",
    "train",
    "trained_state",
]
