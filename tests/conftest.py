"""The order in which files are handed out to the processes that run the tests."""

import pytest

# The longest first: a long file that began last would keep one process busy while the others wait.
LONGEST = (
    "tests/run/test_torchrun.py",
    "tests/run/test_pipeline.py",
    "tests/sweep/test_lockstep.py",
    "tests/run/test_stopping.py",
    "tests/methods/test_pairs.py",
    "tests/export/test_architectures.py",
    "tests/sweep/test_ray.py",
    "tests/stages/test_teachers.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(LONGEST)))
