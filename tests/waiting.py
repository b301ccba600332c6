"""Waiting for what another process does; no verdict depends on how long that takes."""

import time
from collections.abc import Callable

# Seconds. Ends a test that hangs, and is no bound for one that is slow.
HANG = 1200.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Return as soon as the condition holds; `what` names it where it never does."""
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.02)
