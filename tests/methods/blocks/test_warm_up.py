"""The growth of a term's weight."""

from dataclasses import replace

import torch

from compress.data import Batch
from compress.methods.blocks.warm_up import warmed_up

BATCH = Batch((), (), torch.zeros(0), torch.zeros(0), epoch=0, step=0)


def test_grows_from_the_first_epoch_to_the_last_of_the_growth() -> None:
    factors = [warmed_up(replace(BATCH, epoch=epoch), 4) for epoch in range(6)]
    assert factors == [0.25, 0.5, 0.75, 1, 1, 1]


def test_no_growth() -> None:
    assert [warmed_up(BATCH, epochs) for epochs in (0, 1)] == [1, 1]
