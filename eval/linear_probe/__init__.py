"""Linear probe of a frozen encoder.

>>> import torch
>>> from eval.linear_probe import ProbeLoss
>>> probe = ProbeLoss(torch.nn.Linear(16, 3))
>>> list(probe((torch.randn(8, 16), torch.randint(3, (8,)))))
['ce']
"""

from eval.linear_probe.features import Features, pooled_features
from eval.linear_probe.task import ProbeLoss, linear_probe

__all__ = ["Features", "ProbeLoss", "linear_probe", "pooled_features"]
