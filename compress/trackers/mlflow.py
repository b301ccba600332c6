"""MLflow."""

import re
import time
from collections.abc import Mapping

import yaml

from compress.trackers.base import Place, Tracker


class MLflow(Tracker):
    """One run of an MLflow experiment; `uri` is by default what MLFLOW_TRACKING_URI says."""

    package = "mlflow"
    install = "mlflow"

    def __init__(
        self, place: Place, *, experiment: str = "compress", uri: str | None = None
    ) -> None:
        from mlflow import MlflowClient

        # Not mlflow.start_run: that has one run per process.
        client = MlflowClient(tracking_uri=uri)

        def create() -> str:
            existing = client.get_experiment_by_name(experiment)
            number = existing.experiment_id if existing else client.create_experiment(experiment)
            return str(client.create_run(number, run_name=place.name).info.run_id)

        self._client = client
        where = {"experiment": experiment, "uri": uri}
        self._run = place.load_or_create_id("mlflow", where, create)
        self.logged_epochs = place.logged_epochs("mlflow", where)
        client.update_run(self._run, status="RUNNING")
        client.log_text(self._run, yaml.safe_dump(dict(place.recipe)), "recipe.yaml")

    def log(self, role: str, epoch: int, values: Mapping[str, float]) -> None:
        """See `Tracker`; MLflow refuses some characters that roles may have."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        names = {name: re.sub(r"[^\w/. -]", "_", f"{role}/{name}") for name in values}
        metrics = [Metric(names[k], value, now, epoch) for k, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, *, failed: bool) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._run, status="FAILED" if failed else "FINISHED")
