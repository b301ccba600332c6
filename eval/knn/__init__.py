"""knn on a frozen encoder's features.

>>> import torch
>>> from eval.knn import knn_accuracy
>>> from eval.linear_probe import Features
>>> points, labels = torch.eye(4), torch.tensor([0, 1, 0, 1])
>>> features = Features(points, labels, 2 * points, labels, classes=2)
>>> knn_accuracy(features, k=1, metric="cosine")
100.0
"""

from eval.knn.task import knn, knn_accuracy

__all__ = ["knn", "knn_accuracy"]
