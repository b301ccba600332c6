"""Weights & Biases."""

import uuid
from collections.abc import Mapping
from typing import Literal

from compress.trackers.base import Place, Tracker


class WeightsAndBiases(Tracker):
    """One run of a W&B project; the x axis of a network's numbers is ROLE/epoch."""

    package = "wandb"
    install = "wandb"

    def __init__(
        self,
        place: Place,
        *,
        project: str = "compress",
        entity: str | None = None,
        group: str | None = None,
        mode: Literal["online", "offline"] = "online",
    ) -> None:
        import wandb

        where = {"project": project, "entity": entity}
        self._run = wandb.init(
            project=project,
            entity=entity,
            group=group,
            mode=mode,
            name=place.name,
            dir=str(place.folder),
            config=dict(place.recipe),
            id=place.load_or_create_id("wandb", where, lambda: uuid.uuid4().hex),
            resume="allow",
            reinit="create_new",  # another run of this process keeps its own
        )
        self.logged_epochs = place.logged_epochs("wandb", where)
        self._roles: set[str] = set()

    def log(self, role: str, epoch: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        axis = f"{role}/epoch"
        if role not in self._roles:
            self._run.define_metric(axis)
            self._run.define_metric(f"{role}/*", step_metric=axis)
            self._roles.add(role)
        self._run.log({axis: epoch, **{f"{role}/{name}": v for name, v in values.items()}})

    def close(self, *, failed: bool) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=int(failed))
