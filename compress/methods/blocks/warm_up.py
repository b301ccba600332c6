"""Terms whose weight grows over the first epochs."""

from compress.data.batch import Batch


def warmed_up(batch: Batch, epochs: int) -> float:
    """The factor of a term in a batch's epoch: 1 / epochs in the first, 1 from the last of them.

    Args:
        epochs: of the growth, at least 0; 0 and 1 are without it.
    """
    return min((batch.epoch + 1) / epochs, 1.0) if epochs else 1.0
