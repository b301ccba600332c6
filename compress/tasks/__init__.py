"""The tasks that networks are trained for and evaluated on.

>>> import torch
>>> from torch import nn
>>> from compress.tasks import Classification
>>> task, labels = Classification(), torch.tensor([0, 1, 1, 0])
>>> task.loss(torch.zeros(4, 2), labels)
tensor(0.6931)
>>> metrics = task.evaluate(nn.Identity(), [(torch.eye(2)[[0, 1, 0, 0]], labels)])
>>> metrics, task.format(metrics[task.metric])
({'top1_percent': 75.0}, '75.00 %')
"""

from compress.tasks.classification import Classification
from compress.tasks.embedding import Embedding
from compress.tasks.neighbours import knn_top1_percent, mutual_knn_percent
from compress.tasks.segmentation import Segmentation
from compress.tasks.task import Task

__all__ = [
    "Classification",
    "Embedding",
    "Segmentation",
    "Task",
    "knn_top1_percent",
    "mutual_knn_percent",
    "task_for",
]


SEGMENTATION = "segmentation"


def task_for(name: str = "classification", *, labels: bool, window: int | None = None) -> Task:
    """The task of a recipe's networks.

    Args:
        name: classification or segmentation.
        labels: False where there are none: networks embed.
        window: see `Segmentation`.
    """
    if name == SEGMENTATION:
        return Segmentation(window)
    return Classification() if labels else Embedding()
