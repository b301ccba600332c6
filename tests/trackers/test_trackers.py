"""Trackers get the rows of metrics.jsonl, and whatever happens to them stops no training."""

import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from compress import trackers
from compress.distributed import collectives
from compress.pipeline import STAGES
from compress.recipe import Named, check_shape
from compress.run.checks import check_recipe
from compress.trackers import recall, record, track_to
from compress.trackers.base import Place, Tracker

TENSORBOARD = [Named(name="tensorboard")]


def row(epoch: int, loss: float = 0.5) -> dict[str, Any]:
    terms = {"ce": loss / epoch, "kd": 0.25}
    told = {"note": "no number", "is_best": True, "top1_percent": 70 + epoch}
    return {"epoch": epoch, "lr": 0.05, "loss": loss, "terms": terms, **told}


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every number that TensorBoard shows of a folder: (step, value)."""
    events = EventAccumulator(str(folder)).Reload()
    names = events.Tags()["scalars"]
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in names}


def test_tensorboard_shows_what_was_recorded(tmp_path: Path) -> None:
    with track_to(TENSORBOARD, tmp_path, "run", {}):
        for epoch in (1, 2):
            record("teacher", row(epoch))
            record("distill/kd", row(epoch, loss=1.0))
    assert curves(tmp_path / "tensorboard/distill/kd") == {
        "lr": [(1, pytest.approx(0.05)), (2, pytest.approx(0.05))],
        "loss": [(1, 1.0), (2, 1.0)],
        "terms/ce": [(1, 1.0), (2, 0.5)],
        "terms/kd": [(1, 0.25), (2, 0.25)],
        "top1_percent": [(1, 71.0), (2, 72.0)],
    }
    assert curves(tmp_path / "tensorboard/teacher")["terms/ce"] == [(1, 0.5), (2, 0.25)]


def test_epochs_that_are_done_again_are_shown_once(tmp_path: Path) -> None:
    with track_to(TENSORBOARD, tmp_path, "run", {}):
        for epoch in (1, 2, 3):
            record("teacher", row(epoch))
        record("distill/kd", row(1))
    with track_to(TENSORBOARD, tmp_path, "run", {}):
        record("teacher", row(2, loss=2.0))
    assert curves(tmp_path / "tensorboard/teacher")["loss"] == [(1, 0.5), (2, 2.0)]
    assert curves(tmp_path / "tensorboard/distill/kd")["loss"] == [(1, 0.5)]


def test_nothing_is_recorded_outside_or_by_other_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record("teacher", row(1))
    monkeypatch.setattr(trackers, "rank", lambda: 1)
    with track_to(TENSORBOARD, tmp_path, "run", {}):
        record("teacher", row(1))
    assert not list(tmp_path.iterdir())
    assert collectives.rank() == 0


class Broken(Tracker):
    """Fails at the second epoch."""

    package = install = "nothing"
    said: ClassVar[list[str]] = []

    def __init__(self, place: Place, *, at_once: bool = False) -> None:
        if at_once:
            raise ConnectionError("no route to host")

    def log(self, role: str, epoch: int, values: Mapping[str, float]) -> None:
        self.said.append(f"{role} {epoch}")
        if epoch == 2:
            raise ConnectionError("the server\nis gone")

    def close(self, *, failed: bool) -> None:
        self.said.append(f"closed {failed}")


def test_a_tracker_that_fails_is_told_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "TRACKERS", {**trackers.TRACKERS, "broken": Broken})
    monkeypatch.setattr(Broken, "said", [])
    with track_to([Named(name="broken"), *TENSORBOARD], tmp_path, "run", {}):
        for epoch in (1, 2, 3):
            record("teacher", row(epoch))
    printed = capsys.readouterr().out
    assert printed.count("tracker broken failed") == 1
    assert "the server is gone; metrics.jsonl has all" in printed
    assert Broken.said == ["teacher 1", "teacher 2"]
    steps = [step for step, _ in curves(tmp_path / "tensorboard/teacher")["loss"]]
    assert steps == [1, 2, 3], "the others go on"
    part = Named.model_validate({"name": "broken", "at_once": True})
    with track_to([part], tmp_path, "run", {}):
        record("teacher", row(1))
    assert "no route to host" in capsys.readouterr().out


def test_an_interrupt_passes_and_the_tracker_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "TRACKERS", {"broken": Broken})
    monkeypatch.setattr(Broken, "said", [])
    with pytest.raises(KeyboardInterrupt), track_to([Named(name="broken")], tmp_path, "run", {}):
        raise KeyboardInterrupt
    assert Broken.said == ["closed True"]


class Calls:
    """A library whose every call is written down."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *values, **named: self.made.append((name, *values, *named.items()))


class Client:
    """MLflow's client, as far as it is used: keeps the steps that it is given."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def get_experiment_by_name(self, name: str) -> Any:
        return types.SimpleNamespace(experiment_id=name)

    def create_run(self, number: str, run_name: str) -> Any:
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=number))

    def update_run(self, run: str, status: str) -> None: ...

    def log_text(self, run: str, text: str, name: str) -> None: ...

    def log_batch(self, run: str, metrics: list[tuple[Any, ...]]) -> None:
        self.steps += [step for _, _, _, step in metrics]

    def set_terminated(self, run: str, status: str) -> None: ...


def test_wandb_counts_each_network_by_itself_and_continues_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, given = Calls(), []

    def init(**arguments: Any) -> Calls:
        given.append(arguments)
        return run

    library = types.SimpleNamespace(init=init)
    monkeypatch.setitem(sys.modules, "wandb", library)
    part = Named.model_validate({"name": "wandb", "project": "x"})
    for _ in range(2):
        with track_to([part], tmp_path, "small", {"seed": 3}):
            record("distill/kd", {"epoch": 1, "loss": 0.5})
    assert run.made[: len(run.made) // 2] == [
        ("define_metric", "distill/kd/epoch"),
        ("define_metric", "distill/kd/*", ("step_metric", "distill/kd/epoch")),
        ("log", {"distill/kd/epoch": 1, "distill/kd/loss": 0.5}),
        ("finish", ("exit_code", 0)),
    ]
    first, second = given
    assert (first["project"], first["name"], first["config"]) == ("x", "small", {"seed": 3})
    assert first["id"] == second["id"]
    elsewhere = Named.model_validate({"name": "wandb", "project": "y"})
    with track_to([elsewhere], tmp_path, "small", {}):
        pass
    assert given[2]["id"] != first["id"]


@pytest.mark.parametrize("service", ["wandb", "mlflow"])
def test_a_service_gets_an_epoch_that_it_has_not_and_no_other_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    run, client = Calls(), Client()
    libraries = {
        "wandb": types.SimpleNamespace(init=lambda **_: run),
        "mlflow": types.SimpleNamespace(MlflowClient=lambda **_: client),
        "mlflow.entities": types.SimpleNamespace(Metric=lambda *values: values),
    }
    for name, library in libraries.items():
        monkeypatch.setitem(sys.modules, name, library)

    def given(project: str, *, behind: int, new: int) -> list[int]:
        """The epochs that a process gives which has some behind it and makes others."""
        run.made.clear()
        client.steps.clear()
        place = {"wandb": "project", "mlflow": "experiment"}[service]
        part = Named.model_validate({"name": service, place: project})
        with track_to([part], tmp_path, "small", {}):
            recall("kd", [{"epoch": epoch, "loss": 0.5} for epoch in range(1, behind + 1)])
            for epoch in range(behind + 1, behind + new + 1):
                record("kd", {"epoch": epoch, "loss": 0.5})
        if service == "mlflow":
            return client.steps
        return [call[1]["kd/epoch"] for call in run.made if call[0] == "log"]

    assert given("x", behind=0, new=2) == [1, 2]
    assert given("x", behind=3, new=1) == [3, 4], "epoch 3 was saved and not given"
    assert given("y", behind=4, new=0) == [1, 2, 3, 4], "another project has nothing yet"
    assert given("x", behind=4, new=0) == []
    assert given("x", behind=0, new=1) == [1], "trained anew"
    assert given("x", behind=2, new=1) == [2, 3]
    assert given("x", behind=0, new=0) == [], "trained anew and killed before its epochs were given"
    assert given("x", behind=2, new=1) == [1, 2, 3]


def problems(*parts: Any) -> list[str]:
    train = {"epochs": 1, "lr": 0.1}
    recipe, messages = check_shape(
        {
            "data": "digits",
            "teacher": {"model": "resnet8", "train": train},
            "student": {"model": "resnet8"},
            "distill": {"method": "kd", "train": train},
            "trackers": list(parts),
        }
    )
    assert recipe is not None, messages
    return check_recipe(recipe, STAGES)


def test_mistakes_are_found_when_planning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems("tensorboard") == []
    (unknown,) = problems("tensorbord")
    assert unknown.startswith("trackers.0: unknown name 'tensorbord'")
    assert "did you mean 'tensorboard'?" in unknown
    (argument,) = problems({"name": "tensorboard", "folder": "x"})
    assert argument.startswith("trackers.0.folder: unknown key")
    assert problems("tensorboard", "tensorboard") == ["trackers.1: 'tensorboard' stands twice"]
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert problems("tensorboard", {"name": "wandb", "mode": "off"})[0] == (
        "trackers.0: tensorboard needs the package tensorboard; "
        "install it: pip install 'compress[trackers]'"
    )
    wandb = problems({"name": "wandb", "mode": "off"})
    assert wandb[0].startswith("trackers.0.mode: ")
    assert wandb[1].endswith("pip install wandb")


def test_a_folder_of_a_packages_name_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_mere_folder").mkdir()  # W&B leaves one that is called as its package
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(Broken, "package", "a_mere_folder")
    monkeypatch.setattr(trackers, "TRACKERS", {"broken": Broken})
    assert "install it" in (trackers.lacks("broken") or "")
