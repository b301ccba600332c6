"""MoCo v2: Momentum Contrast for Unsupervised Visual Representation Learning.

He et al., CVPR 2020; v2: Chen et al., Improved Baselines with Momentum Contrastive Learning, 2020.
With q = g(f(x_1)) of one view of an image and k+ = g'(f'(x_2)) of another, all of length 1,

    L = -log(e^(q k+ / tau) / (e^(q k+ / tau) + sum_i e^(q k_i / tau))),

the mean over the images of a batch; k_i are the keys of earlier batches, first in, first out. f is
the encoder, g linear to the encoder's width, ReLU, linear to 128 (the head of v2); f' and g' are
averages of f and g, m of what they are and 1 - m of f and g after each step. Both views are those
of `compress.data.moco_views`.

Defaults are those of v2 and its released code on ImageNet: tau 0.2, m 0.999, 65,536 keys, with 200
epochs of batches of 256, learning rate 0.03 (cosine), weight decay 1e-4. Small data want fewer
keys.

What differs: the released code computes keys on other processes than queries, image by image
shuffled, so that batch norm does not tell a key from its query by the statistics of their common
batch. Here each step's keys are computed in `groups` parts of a shuffled batch, each with batch
statistics of its own, while queries see the whole batch. Only f is kept; g stays behind.
"""

import copy
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from compress.data.batch import Batch
from compress.methods.blocks.key_queue import KeyQueue, info_nce
from compress.methods.blocks.momentum import move_average
from compress.seeding import seed_for


class MoCo(nn.Module):
    """Returns the term `contrast` of a batch of two views; its state is all that learning needs."""

    augment: ClassVar[tuple[str, ...]] = ("moco", "moco")

    def __init__(
        self,
        network: nn.Module,
        width: int,
        *,
        seed: int,
        queue_size: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.2,
        embedding_width: int = 128,
        groups: int = 2,
    ) -> None:
        """Learn the encoder in place.

        Args:
            network: normalised images (N, 3, H, W) -> embeddings (N, width).
            seed: of what is drawn in a step; first weights are drawn from the global generators.
            groups: parts of a batch that keys are computed in; 1: the whole batch at once.
        """
        super().__init__()
        _refuse_impossible(momentum, temperature, groups)
        self.network = network
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, embedding_width)
        )
        self.key_network = copy.deepcopy(network).requires_grad_(False)
        self.key_head = copy.deepcopy(self.head).requires_grad_(False)
        self.queue = KeyQueue(queue_size, embedding_width)
        self.momentum = momentum
        self.temperature = temperature
        self.groups = groups
        self._seed = seed

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of a batch's two views."""
        queries = self.head(self.network(batch.images[0]))
        keys = self._keys(batch.images[1], batch)
        loss = info_nce(queries, keys, self.queue.keys, temperature=self.temperature)
        if self.training:
            self.queue.collect(keys, batch.rows)
        return {"contrast": loss}

    @torch.no_grad()
    def _keys(self, images: Tensor, batch: Batch) -> Tensor:
        """Keys (N, D) of length 1, in the order of the images."""
        count = max(1, min(self.groups, len(images) // 2))  # batch norm needs two of each
        generator = torch.Generator(images.device)
        generator.manual_seed(seed_for(self._seed, "groups", batch.epoch, batch.step, batch.start))
        order = torch.randperm(len(images), generator=generator, device=images.device)
        parts = [self.key_head(self.key_network(images[rows])) for rows in order.chunk(count)]
        return normalize(torch.cat(parts)[order.argsort()].float())

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the averages and the queue."""
        own = [*self.network.parameters(), *self.head.parameters()]
        move_average(
            [*self.key_network.parameters(), *self.key_head.parameters()], own, self.momentum
        )
        self.queue.write()


def _refuse_impossible(momentum: float, temperature: float, groups: int) -> None:
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum is from 0 to 1, got {momentum}")
    if temperature <= 0:
        raise ValueError(f"temperature is above 0, got {temperature}")
    if groups < 1:
        raise ValueError(f"groups are at least 1, got {groups}")
