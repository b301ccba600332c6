"""A pair's account from names alone: what belongs together, what is refused, and the command."""

import json
import subprocess
import sys
from typing import Any

import pytest
from torch import Tensor, nn
from torch.nn import functional as F

import compress.accounting
from compress import models
from compress.accounting import account_pair, count_macs, count_parameters, speedup_percent
from compress.accounting.__main__ import main
from compress.errors import UserError
from compress.methods import METHODS, Method, MethodContext

PAIR: dict[str, Any] = {"teacher": "resnet14", "student": "resnet8", "num_classes": 10}
COMMAND = ["--teacher", "resnet14", "--student", "resnet8", "--classes", "10"]


class Attention(nn.Module):
    """Patches that attend to each other, global average pooling, a linear classifier."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.mix = Mix()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.avgpool(self.mix(self.patches(images))).flatten(1))
        return logits


class Mix(nn.Module):
    """Attention without weights of its own; (N, C, H, W) -> the same shape."""

    def forward(self, features: Tensor) -> Tensor:
        tokens = features.flatten(2).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(tokens, tokens, tokens)
        return mixed.transpose(1, 2).reshape(features.shape)


class Behind(nn.Module):
    """A student with one more linear layer behind its logits."""

    def __init__(self, student: nn.Module, layer: nn.Linear) -> None:
        super().__init__()
        self.student = student
        self.layer = layer

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(self.student(images))
        return logits


class Added(Method):
    """A method that no module of the accounting can know."""

    def __init__(self, context: MethodContext, *, bias: bool = False) -> None:
        super().__init__(context)
        self.layer = nn.Linear(context.num_classes, context.num_classes, bias=bias)

    def deploy(self, student: nn.Module) -> nn.Module:
        return Behind(student, self.layer)


def test_without_a_method_the_plain_student_ships() -> None:
    costs = account_pair(**PAIR)
    teacher, student = (models.build(n, num_classes=10) for n in ("resnet14", "resnet8"))
    assert costs["method"] == {"name": "none"}
    for role, network in (("teacher", teacher), ("student", student), ("deployed", student)):
        assert costs[f"{role}_parameters"] == count_parameters(network)
        assert costs[f"{role}_macs"] == count_macs(network, (3, 32, 32)).macs
        assert costs[f"{role}_flops"] == 2 * costs[f"{role}_macs"]
    assert costs["pruning_ratio_percent"] == costs["plain_pruning_ratio_percent"]
    assert (costs["pruning_ratio_cost_points"], costs["projector_parameters"]) == (0, 0)
    assert costs["macs_saved_percent"] == pytest.approx(
        100 - 100 * costs["student_macs"] / costs["teacher_macs"]
    )
    json.dumps(costs, allow_nan=False)


def test_any_method_is_counted_by_what_it_deploys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "added", Added)  # type: ignore[arg-type]
    costs = account_pair(**PAIR, method={"name": "added", "bias": True})
    assert costs["method"] == {"name": "added", "bias": True}
    assert costs["deployed_parameters"] == costs["student_parameters"] + 110
    assert costs["deployed_macs"] == costs["student_macs"] + 100
    assert costs["pruning_ratio_cost_points"] == pytest.approx(
        100 * 110 / costs["teacher_parameters"]
    )


def test_macs_follow_the_image_size_and_parameters_do_not() -> None:
    small = account_pair(**PAIR, input_shape=(3, 16, 16))
    large = account_pair(**PAIR)
    assert small["student_parameters"] == large["student_parameters"]
    classifier = 64 * 10
    assert large["student_macs"] - classifier == 4 * (small["student_macs"] - classifier)


def test_attention_is_listed_as_uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "MODELS", {**models.MODELS, "attention": Attention})
    costs = account_pair(**{**PAIR, "student": "attention"}, method="simkd")
    assert costs["teacher_uncounted_operators"] == {}
    assert costs["student_uncounted_operators"] == {"scaled_dot_product_attention": 1}
    assert costs["deployed_uncounted_operators"] == {"scaled_dot_product_attention": 1}
    assert costs["student_macs"] == 8 * 8 * (4 * 4 * 3 * 8) + 8 * 10


def test_speed_up_is_timed_only_if_asked_for() -> None:
    assert account_pair(**PAIR)["speedup_percent"] is None
    costs = account_pair(**PAIR, input_shape=(3, 8, 8), latency_rounds=1)
    times = costs["deployed_latency_ms"], costs["teacher_latency_ms"]
    assert min(times) > 0
    assert costs["speedup_percent"] == speedup_percent(*times)
    assert (costs["latency_protocol"]["rounds"], costs["latency_protocol"]["batch"]) == (1, 1)


def test_speed_up_limits() -> None:
    assert speedup_percent(5, 5) == 0
    assert speedup_percent(2, 8) == 75
    assert speedup_percent(8, 2) == -300
    with pytest.raises(ValueError, match="0 ms"):
        speedup_percent(1, 0)


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        account_pair(
            teacher="resnet14x", student="resnt8", method="simdk", num_classes=1, latency_rounds=-1
        )
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "teacher",
        "student",
        "method",
        "classes",
        "latency rounds",
    ]
    assert "did you mean 'resnet14" in lines[0]
    assert "did you mean 'simkd'" in lines[2]


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ({"name": "simkd", "reductoin": 2}, "did you mean 'reduction'"),
        ({"name": "simkd", "reduction": "2"}, "method simkd.reduction: "),
        ({"name": "simkd", "reduction": 0}, "method simkd: reduction is 1 to 64, got 0"),
        ({"reduction": 2}, "method: expected a name"),
    ],
)
def test_a_methods_arguments_are_checked(method: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        account_pair(**PAIR, method=method)


def test_an_image_too_small_for_a_network_is_refused() -> None:
    with pytest.raises(UserError, match="torchvision:vit_b_16 cannot be used on 3 x 8 x 8 images"):
        account_pair(**{**PAIR, "student": "torchvision:vit_b_16"}, input_shape=(3, 8, 8))


def test_the_command_prints_what_the_function_returns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--method", "simkd", "--set", "reduction=4", "--json"]) == 0
    method = {"name": "simkd", "reduction": 4}
    assert json.loads(capsys.readouterr().out) == account_pair(**PAIR, method=method)


def test_the_command_prints_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--method", "simkd", "--image-size", "16"]) == 0
    printed = capsys.readouterr().out
    costs = account_pair(**PAIR, method="simkd", input_shape=(3, 16, 16))
    assert f"{costs['deployed_parameters']:,}" in printed
    assert f"{costs['pruning_ratio_percent']:.2f} %" in printed
    assert "speed-up" not in printed


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--method", "simdk"], "did you mean 'simkd'"),
        (["--set", "reduction"], "expected dotted.path=value"),
        (["--method", "simkd", "--set", "reduction=two"], "method simkd.reduction"),
        (["--classes", "0"], "classes: expected 2 or more, got 0"),
    ],
)
def test_the_command_refuses_in_one_message(
    given: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COMMAND, *given]) == 2
    printed = capsys.readouterr().out
    assert printed.startswith("error: ")
    assert told in printed


def test_counting_alone_imports_no_models_and_methods() -> None:
    code = (
        "import sys, compress.accounting;"
        "heavy = [m for m in ('torchvision', 'sklearn', 'pydantic', 'fvcore', 'compress.models',"
        " 'compress.methods') if m in sys.modules]; sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_exported_name_is_there() -> None:
    assert all(hasattr(compress.accounting, name) for name in compress.accounting.__all__)
    with pytest.raises(AttributeError, match="no attribute 'account_pairs'"):
        compress.accounting.account_pairs  # noqa: B018
