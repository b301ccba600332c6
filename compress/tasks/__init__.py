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
from compress.tasks.task import Task

__all__ = [
    "Classification",
    "Embedding",
    "Task",
    "knn_top1_percent",
    "mutual_knn_percent",
    "task_for",
]


def task_for(*, labels: bool) -> Task:
    """The task of networks that learn from images with labels, or without."""
    return Classification() if labels else Embedding()
