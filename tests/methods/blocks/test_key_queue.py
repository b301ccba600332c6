"""The queue of keys against a deque, trial passes, and keys that come in parts."""

from collections import deque

import pytest
import torch
from torch import Tensor

from compress.methods.blocks.key_queue import KeyQueue


def _rows(queue: KeyQueue) -> list[list[float]]:
    """The keys from the oldest to the latest."""
    return queue.keys.roll(-int(queue.position), 0).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("counts", [(3, 3, 3), (5, 5), (4, 1, 4, 4), (12, 2)])
def test_the_oldest_leave_first_whatever_the_batches_are(counts: tuple[int, ...]) -> None:
    queue = KeyQueue(5, 2)
    expected = deque(_rows(queue), maxlen=5)
    for count in counts:
        keys = torch.randn(count, 2)
        queue.collect(keys, torch.arange(count))
        queue.write()
        expected.extend(keys.tolist())
        assert _rows(queue) == [*expected]


def test_begins_with_random_keys_of_length_one() -> None:
    torch.manual_seed(0)
    one, other = KeyQueue(4, 8), KeyQueue(4, 8)
    torch.testing.assert_close(one.keys.norm(dim=1), torch.ones(4))
    assert not torch.equal(one.keys, other.keys)


def test_parts_of_a_step_are_written_in_the_order_of_their_rows() -> None:
    keys = torch.randn(6, 2)
    whole, parts = KeyQueue(8, 2), KeyQueue(8, 2)
    parts.load_state_dict(whole.state_dict())
    whole.collect(keys, torch.arange(6))
    for rows in ((3, 4, 5), (0, 1, 2)):
        parts.collect(keys[list(rows)], torch.tensor(rows))
    for queue in (whole, parts):
        queue.write()
    assert torch.equal(whole.keys, parts.keys)


def test_what_a_trial_pass_saw_is_not_written() -> None:
    queue = KeyQueue(4, 2)
    before = {name: value.clone() for name, value in queue.state_dict().items()}
    queue.collect(torch.randn(3, 2), torch.arange(3))
    queue.load_state_dict(before)
    queue.write()
    assert all(torch.equal(value, before[name]) for name, value in queue.state_dict().items())


def test_its_size_is_that_of_the_papers_table() -> None:
    # CoCoRD, Table 12: 16.78 MB on CIFAR-100, 536.87 MB on ImageNet.
    with torch.device("meta"):
        assert KeyQueue(2048, 2048).note() == "a queue of 2,048 x 2,048 float32: 16.78 MB"
        assert "536.87 MB" in KeyQueue(65536, 2048).note()


def test_an_empty_queue_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="queue_size is at least 1, got 0"):
        KeyQueue(0, 2)


def test_a_step_without_keys_changes_nothing() -> None:
    queue = KeyQueue(3, 2)
    before: Tensor = queue.keys.clone()
    queue.write()
    assert torch.equal(queue.keys, before)
