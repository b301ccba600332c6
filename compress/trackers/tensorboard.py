"""TensorBoard: files in the run directory."""

from collections.abc import Mapping
from typing import Any

from compress.trackers.base import Place, Tracker


class TensorBoard(Tracker):
    """RUN/tensorboard/ROLE: a folder per network, so that networks share a chart per number."""

    package = "tensorboard"
    install = "'compress[trackers]'"

    def __init__(self, place: Place) -> None:
        self._folder = place.folder / "tensorboard"
        self._writers: dict[str, Any] = {}

    def log(self, role: str, epoch: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        from torch.utils.tensorboard import SummaryWriter

        if role not in self._writers:
            # What an earlier process wrote of this epoch and later ones is hidden: it comes again.
            folder = str(self._folder / role)
            self._writers[role] = SummaryWriter(folder, purge_step=epoch)
        for name, value in values.items():
            self._writers[role].add_scalar(name, value, epoch)
        self._writers[role].flush()

    def close(self, *, failed: bool) -> None:
        """See `Tracker`."""
        for writer in self._writers.values():
            writer.close()
