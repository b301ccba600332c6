"""THE loop: resumes bit by bit, selects, refuses to go on with a loss that is not finite."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from compress.data import Batch
from compress.engine import (
    SCHEDULES,
    Checkpoint,
    OptimizerStep,
    Selection,
    TrainSettings,
    train,
    trained_state,
)
from compress.engine.optimization import multistep
from compress.errors import UserError
from compress.recipe import Named
from compress.storage.files import write_tensors
from compress.trackers import track_to

CPU = torch.device("cpu")


class Problem(nn.Module):
    """A small regression with dropout, batch norm and a count of steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)
        )
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.kill_at = -1

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        if int(self.steps) == self.kill_at:
            raise KeyboardInterrupt
        x, y = batch
        error = self.net(x) - y
        return {"squared": error.square().mean(), "size": 0.1 * error.abs().mean()}

    def after_step(self) -> None:
        self.steps += 1


class Data:
    def __len__(self) -> int:
        return 3

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(3):
            generator = torch.Generator().manual_seed(10 * epoch + step)
            x = torch.randn(6, 4, generator=generator)
            yield x, x.sum(1, keepdim=True)


def run(folder: Path, problem: Problem, epochs: int = 4, **options: object) -> list[dict]:  # type: ignore[type-arg]
    settings = options.pop("settings", TrainSettings(epochs=epochs, lr=0.05))
    return train(
        problem,
        Data(),
        settings,
        directory=folder,
        role="test",
        seed=0,
        device=CPU,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [("sgd", "float32"), ("adamw", "float32"), ("sgd", "float16"), ("sgd", "bfloat16")],
)
@pytest.mark.parametrize("kill_at", [1, 4, 9])
def test_a_killed_training_continues_bit_by_bit(
    tmp_path: Path, kill_at: int, optimizer: str, precision: str
) -> None:
    settings = TrainSettings(epochs=4, lr=0.05, optimizer=optimizer, precision=precision)
    whole = Problem()
    expected = run(tmp_path / "whole", whole, settings=settings)
    killed = Problem()
    killed.kill_at = kill_at
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", killed, settings=settings)
    resumed = Problem()
    torch.manual_seed(999)  # whatever the global generator stands at
    got = run(tmp_path / "killed", resumed, settings=settings)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    times = {"seconds"}
    assert [{k: v for k, v in row.items() if k not in times} for row in got] == [
        {k: v for k, v in row.items() if k not in times} for row in expected
    ]
    assert len((tmp_path / "killed/metrics.jsonl").read_text().splitlines()) == 4


def test_a_finished_training_is_only_loaded(tmp_path: Path) -> None:
    first = Problem()
    run(tmp_path, first)
    again = Problem()
    again.kill_at = 12  # a further step would raise
    history = run(tmp_path, again)
    assert len(history) == 4
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in first.state_dict().items())


def test_the_global_generator_is_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(tmp_path, Problem_without_reseeding())
    assert torch.equal(before, torch.get_rng_state())


def Problem_without_reseeding() -> Problem:
    with torch.random.fork_rng():
        return Problem()


def test_a_loss_that_is_not_finite_stops_the_run_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no longer finite in epoch 1.*lower the learning rate"):
        run(tmp_path, Problem(), settings=TrainSettings(epochs=2, lr=1e30))


def test_metrics_hold_lr_terms_and_evaluation(tmp_path: Path) -> None:
    run(tmp_path, Problem(), evaluate=lambda: {"top1_percent": 50.0})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["lr"] == 0.05
    assert rows[-1]["lr"] == pytest.approx(0.05 * 0.1**3)  # the last step is past 0.875
    assert set(rows[0]["terms"]) == {"squared", "size"}
    assert rows[0]["loss"] == pytest.approx(sum(rows[0]["terms"].values()))
    assert rows[0]["top1_percent"] == 50.0


def test_the_best_epoch_is_kept_where_asked(tmp_path: Path) -> None:
    values = iter([10.0, 30.0, 20.0, 30.0])
    problem = Problem()
    seen: list[Tensor] = []

    def evaluate() -> dict[str, float]:
        seen.append(problem.net[0].weight.detach().clone())  # type: ignore[operator]
        return {"validation_top1_percent": next(values)}

    run(tmp_path, problem, evaluate=evaluate, keep_best=Selection("validation_top1_percent"))
    assert torch.equal(problem.net[0].weight, seen[1])  # the first of equals
    assert torch.equal(trained_state(tmp_path)["net.0.weight"], seen[1])


def test_a_kill_between_best_and_checkpoint_loses_no_best(tmp_path: Path) -> None:
    """A redone epoch may come out worse (CUDA): the best of the history must still be there."""
    problem = Problem()
    run(tmp_path, problem, evaluate=lambda: {"m": 1.0}, keep_best=Selection("m"))
    best = trained_state(tmp_path)
    # A fifth epoch that was the best so far was killed before its checkpoint was written.
    later = {k: torch.zeros_like(v) for k, v in best.items()}
    write_tensors(tmp_path / "best-0005.safetensors", later)
    again = Problem()
    run(tmp_path, again, evaluate=lambda: {"m": 0.0}, keep_best=Selection("m"))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in best.items())
    assert [p.name for p in tmp_path.glob("best-*")] == ["best-0001.safetensors"]


def test_a_frozen_parameter_does_not_move(tmp_path: Path) -> None:
    problem = Problem()
    problem.net[0].weight.requires_grad_(False)  # type: ignore[union-attr]
    before = problem.net[0].weight.clone()  # type: ignore[operator]
    run(tmp_path, problem)
    assert torch.equal(before, problem.net[0].weight)


def test_multistep_drops_after_150_180_210_of_240() -> None:
    factors = [multistep()(epoch / 240) for epoch in range(240)]
    changes = [e for e in range(1, 240) if factors[e] != factors[e - 1]]
    assert changes == [150, 180, 210]
    assert factors[-1] == pytest.approx(1e-3)


def test_a_warm_up_rises_on_a_line_to_the_schedule() -> None:
    plain, warmed = multistep(), multistep(warmup=0.1)
    assert warmed(0.0) == pytest.approx(1e-3)
    assert warmed(0.05) == pytest.approx((1 + 1e-3) / 2)
    assert all(warmed(p) == plain(p) for p in (0.1, 0.5, 0.7, 0.9))
    with pytest.raises(ValueError, match="warmup is a share of the run"):
        multistep(warmup=1.0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_start_at_one_and_never_rise(name: str) -> None:
    schedule = SCHEDULES[name]()
    values = [schedule(i / 100) for i in range(100)]
    assert values[0] == 1
    assert all(a >= b for a, b in itertools.pairwise(values))


def test_sgd_is_nesterov_with_weight_decay_as_the_papers_write_it(tmp_path: Path) -> None:
    class Quadratic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))

        def forward(self, batch: object) -> dict[str, Tensor]:
            return {"loss": 0.5 * self.w.square().sum()}

    module = Quadratic()
    settings = TrainSettings(epochs=1, lr=0.1, weight_decay=0.5, schedule=SCHEDULES["constant"]())
    train(module, Data(), settings, directory=tmp_path, role="q", seed=0, device=CPU)
    w, velocity = 2.0, 0.0
    for _ in range(3):
        gradient = w + 0.5 * w
        velocity = 0.9 * velocity + gradient
        w -= 0.1 * (gradient + 0.9 * velocity)
    assert float(module.w.detach()) == pytest.approx(w, rel=1e-12)


def test_the_scale_of_float16_gradients_continues_where_it_was(tmp_path: Path) -> None:
    settings = TrainSettings(epochs=1, lr=0.05, precision="float16")
    module = Problem()
    step = OptimizerStep(module, settings, CPU)
    step(next(Data().epoch(0)), 0.0, {})
    step.scaler.update(new_scale=128.0)
    Checkpoint(tmp_path, module, step.optimizer, step.scaler).save([{"epoch": 1}], None)
    again = OptimizerStep(Problem(), settings, CPU)
    Checkpoint(tmp_path, again.module, again.optimizer, again.scaler).resume()
    assert again.scaler.state_dict() == step.scaler.state_dict()
    assert again.scaler.get_scale() == 128.0


def test_a_resumed_momentum_lies_in_memory_as_its_parameter(tmp_path: Path) -> None:
    def learner() -> tuple[nn.Module, torch.optim.Optimizer]:
        network = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
        return network, torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)

    network, optimizer = learner()
    network(torch.randn(2, 4, 5, 5)).sum().backward()
    optimizer.step()
    Checkpoint(tmp_path, network, optimizer).save([{"epoch": 1}], None)
    network, optimizer = learner()
    Checkpoint(tmp_path, network, optimizer).resume()
    momentum = optimizer.state[network.weight]["momentum_buffer"]
    assert momentum.stride() == network.weight.stride()


def test_parts_of_a_batch_have_its_gradient(tmp_path: Path) -> None:
    data = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    whole = Batch((data,), (), data.sum(1), torch.arange(7), 0, 0)

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Linear(4, 1).double()

        def forward(self, batch: Batch) -> dict[str, Tensor]:
            assert len(batch.index) >= 2, "too few for batch norm"
            error = self.net(batch.images[0].double())[:, 0] - batch.labels
            return {"squared": error.square().mean()}

    found = []
    for parts in (1, 3, 100):
        module, totals = Linear(), {}
        step = OptimizerStep(module, TrainSettings(epochs=1, lr=0.1, accumulate=parts), CPU)
        step(whole, 0.0, totals)
        found.append([*module.parameters(), totals["squared"]])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


class Killed(Exception):
    """Ends a training as a kill does."""


@pytest.mark.parametrize("before", [["tensorboard"], []], ids=["same tracker", "added tracker"])
def test_trackers_show_every_epoch_of_a_continued_training_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: list[str]
) -> None:
    def tracked(names: list[str]) -> None:
        with track_to([Named(name=name) for name in names], tmp_path, "run", {}):
            run(tmp_path / "test", Problem())

    save = Checkpoint.save

    def save_and_die(self: Checkpoint, history: list[dict[str, Any]], best: str | None) -> None:
        save(self, history, best)
        if len(history) == 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoint, "save", save_and_die)
        tracked(before)
    for _ in range(2):  # a training that is only loaded adds nothing
        tracked(["tensorboard"])
        events = EventAccumulator(str(tmp_path / "tensorboard/test")).Reload().Scalars("loss")
        rows = [json.loads(r) for r in (tmp_path / "test/metrics.jsonl").read_text().splitlines()]
        assert [event.step for event in events] == [1, 2, 3, 4]
        losses = [row["loss"] for row in rows]
        assert [event.value for event in events] == pytest.approx(losses, rel=1e-6)


def test_a_long_training_says_beforehand_how_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("compress.engine.loop._LONG", 0.0)
    run(tmp_path, Problem())
    said = capsys.readouterr().out
    assert said.count("about ") == 1
    assert re.search(r"about \d+ s for \d+ epochs here", said)
