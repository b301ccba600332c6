"""Parameters with optimiser settings of their own."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from compress.engine import OPTIMIZERS, OptimizerStep, TrainSettings, optimization, trained_state
from compress.engine.checkpoint import checkpoint_path
from compress.engine.optimization import grouped, make_optimizer, multistep
from compress.methods import ParameterGroup
from compress.methods.contract import OwnOptimizer
from compress.storage.files import read_tensors
from tests.engine.test_loop import CPU, Data, Problem, run

SETTINGS = TrainSettings(epochs=4, lr=0.05, weight_decay=0.1)


class Grouped(Problem):
    """The last layer learns slowly and its bias does not decay."""

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        last = self.net[3]
        return [
            ParameterGroup([last.weight], lr=0.1),
            ParameterGroup([last.bias], weight_decay=0.0),
        ]


class OneUsualGroup(Problem):
    def parameter_groups(self) -> Sequence[ParameterGroup]:
        return [ParameterGroup([])]


def by_hand(steps: int) -> dict[str, Tensor]:
    """SGD with momentum and Nesterov in float32, from the formula, parameter by parameter."""
    module, settings = Grouped().train(), SETTINGS
    torch.manual_seed(1)
    momenta: dict[str, Tensor] = {}
    for step in range(steps):
        batch = (torch.ones(2, 4) * torch.tensor([[1.0], [2.0]]), torch.ones(2, 1))
        loss = sum(module(batch).values())
        module.zero_grad()
        loss.backward()
        lr = settings.lr * settings.schedule(step / steps)
        with torch.no_grad():
            for name, p in module.named_parameters():
                own, decay = (0.1 if name == "net.3.weight" else 1), 0.1
                g = p.grad + (0 if name == "net.3.bias" else decay) * p
                m = momenta[name] = 0.9 * momenta[name] + g if name in momenta else g
                p -= lr * own * (g + 0.9 * m)
    return {name: p.detach() for name, p in module.named_parameters()}


def test_each_group_has_its_factor_and_decay_and_the_schedule_multiplies() -> None:
    module = Grouped().train()
    step = OptimizerStep(module, SETTINGS, CPU)
    torch.manual_seed(1)
    for number in range(8):
        batch = (torch.ones(2, 4) * torch.tensor([[1.0], [2.0]]), torch.ones(2, 1))
        step(batch, number / 8, {})
    rates = [group["lr"] for group in step.optimizer.param_groups]
    lr = SETTINGS.lr * multistep()(7 / 8)
    assert rates == [lr, lr * 0.1, lr]
    for name, expected in by_hand(8).items():
        torch.testing.assert_close(module.get_parameter(name), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_groups_the_optimiser_is_the_plain_one(name: str) -> None:
    settings = replace(SETTINGS, optimizer=name)
    for module in (Problem(), OneUsualGroup()):
        parameters = [*module.parameters()]
        own = getattr(module, "parameter_groups", tuple)()
        made = make_optimizer(grouped(parameters, own), settings)
        plain = OPTIMIZERS[name](parameters, settings)
        assert made.state_dict() == plain.state_dict()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_resume_bit_by_bit(tmp_path: Path, name: str) -> None:
    settings = replace(SETTINGS, optimizer=name)
    run(tmp_path / "once", Grouped(), settings=settings)
    once = trained_state(tmp_path / "once")
    interrupted = Grouped()
    interrupted.kill_at = 7
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", interrupted, settings=settings)
    run(tmp_path / "killed", Grouped(), settings=settings)
    continued = trained_state(tmp_path / "killed")
    assert all(torch.equal(once[key], continued[key]) for key in once)


def test_frozen_parameters_are_in_no_group_and_none_is_in_two() -> None:
    module = Grouped()
    module.net[3].bias.requires_grad_(False)
    groups = grouped(module.parameters(), module.parameter_groups())
    assert [len(group.parameters) for group in groups] == [4, 1]
    twice = ParameterGroup([module.net[3].weight])
    with pytest.raises(ValueError, match="in two groups"):
        grouped(module.parameters(), [twice, twice])


class Adversaries(Problem):
    """Two layers that learn against each other: the first lowers what the last raises."""

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        own = OwnOptimizer("adam", lr=0.02, betas=(0.5, 0.9), weight_decay=0.01)
        return [ParameterGroup([*self.net[3].parameters()], optimizer=own)]


def test_an_optimiser_of_its_own_steps_as_if_it_were_alone() -> None:
    module, alone = Adversaries().train(), Adversaries().train()
    step = OptimizerStep(module, SETTINGS, CPU)
    last = [*alone.net[3].parameters()]
    first = [*alone.net[:3].parameters()]
    sgd = torch.optim.SGD(first, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1)
    adam = torch.optim.Adam(last, lr=0.02, betas=(0.5, 0.9), weight_decay=0.01, fused=True)
    for number, batch in enumerate([*Data().epoch(0), *Data().epoch(1)]):
        progress = number / 6
        torch.manual_seed(number)  # of the dropout
        step(batch, progress, {})
        for optimizer, lr in ((sgd, 0.05), (adam, 0.02)):
            optimizer.param_groups[0]["lr"] = lr * SETTINGS.schedule(progress)
            optimizer.zero_grad()
        torch.manual_seed(number)
        torch.stack([*alone(batch).values()]).sum().backward()
        sgd.step()
        adam.step()
    pairs = zip(module.parameters(), alone.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_training_with_two_optimisers_goes_on_bit_by_bit(tmp_path: Path) -> None:
    run(tmp_path / "once", Adversaries())
    once = trained_state(tmp_path / "once")
    interrupted = Adversaries()
    interrupted.kill_at = 7
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", interrupted)
    run(tmp_path / "killed", Adversaries())
    continued = trained_state(tmp_path / "killed")
    assert all(torch.equal(once[key], continued[key]) for key in once)


def test_the_usual_optimiser_keeps_its_keys_beside_another(tmp_path: Path) -> None:
    run(tmp_path / "usual", Problem())
    run(tmp_path / "two", Adversaries())
    usual, two = (read_tensors(checkpoint_path(tmp_path / name))[0] for name in ("usual", "two"))
    first = [f"optimizer.{i}.momentum_buffer" for i in range(4)]
    assert {*first} <= usual.keys() & two.keys()
    assert {"optimizer.4.exp_avg", "optimizer.5.exp_avg_sq"} <= two.keys()


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimiser that a GPU gets; memory that was never written holds NaN."""
    monkeypatch.setattr(optimization, "_first", lambda _: SimpleNamespace(is_cuda=True))
    monkeypatch.setattr(torch, "empty_like", lambda like: torch.full_like(like, math.nan))


@pytest.mark.usefixtures("fused")
def test_a_first_float16_step_that_overflows_leaves_nothing_behind() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = make_optimizer(grouped([parameter]), replace(SETTINGS, weight_decay=0.0))
    scaler = torch.amp.GradScaler("cpu")
    for gradient, expected in ((math.inf, 1.0), (2.0, 1 - 0.05 * 1.9 * 2)):
        parameter.grad = torch.full((3,), gradient) * scaler.scale(torch.tensor(1.0))
        scaler.step(optimizer)
        scaler.update()
        torch.testing.assert_close(parameter.detach(), torch.full((3,), expected))


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_parameter_may_take_its_first_step_after_others(momentum: float) -> None:
    moved = []
    for is_fused in (True, False):
        early, late = (torch.nn.Parameter(torch.full((2,), v)) for v in (1.0, 2.0))
        settings = replace(SETTINGS, momentum=momentum)
        optimizer = make_optimizer(grouped([early, late]), settings)
        if not is_fused:
            options = {k: optimizer.defaults[k] for k in ("lr", "momentum", "nesterov")}
            decay = settings.weight_decay
            optimizer = torch.optim.SGD([early, late], weight_decay=decay, **options)
        for step in range(3):
            early.grad = torch.full((2,), 0.5)
            late.grad = torch.full((2,), -0.25) if step else None
            optimizer.step()
        moved.append(torch.cat([early, late]).detach())
    torch.testing.assert_close(*moved)
