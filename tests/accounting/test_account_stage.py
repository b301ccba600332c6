"""The account stage: which networks it lists, and that its numbers belong together."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from compress.accounting import count_parameters
from compress.model_files import Student
from compress.models import build
from compress.recipe import Recipe
from compress.stages import account
from compress.stages.job import Job, Outcome

RECIPE = Recipe.model_validate(
    {
        "data": "digits",
        "teacher": {"model": "resnet14", "train": {"epochs": 1, "lr": 0.1}},
        "student": {"model": "resnet8"},
        "distill": {"method": "simkd", "train": {"epochs": 1, "lr": 0.1}, "compare": ["kd"]},
        "account": {"latency": {"batch_sizes": [1, 2], "warmup": 0, "rounds": 2}},
    }
)
DESCRIPTION = {"input_shape": [3, 16, 16]}


class Deployed(nn.Module):
    """A student with something in front of it that is called projector."""

    def __init__(self) -> None:
        super().__init__()
        self.projector = nn.Conv2d(3, 3, 1)
        self.rest = build("resnet8", num_classes=10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.rest(self.projector(images))
        return logits


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The stage run over a teacher, the plain student, two methods and a second trial."""
    with pytest.MonkeyPatch.context() as patch:
        return run_stage(tmp_path_factory.mktemp("run"), patch)


def run_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """Run the stage on a run directory whose networks come from memory."""
    results = {
        "teacher": {"teachers": [{"label": "teacher"}]},
        "distill/simkd": {"label": "simkd", "trial": 0},
        "distill/kd": {"label": "kd", "trial": 0},
        "distill/kd-trial1": {"label": "kd", "trial": 1},
    }
    for stage, values in results.items():
        (tmp_path / stage).mkdir(parents=True)
        result = {"fingerprint": "", "values": values, "measured": {}}
        (tmp_path / stage / "result.json").write_text(json.dumps(result))
    networks = {"simkd": Deployed(), "kd": build("resnet8", num_classes=10)}
    monkeypatch.setattr(
        account, "load_student", lambda folder: Student(networks[folder.name], DESCRIPTION)
    )
    monkeypatch.setattr(account, "build_plain", lambda _: build("resnet8", num_classes=10))
    teacher = Student(build("resnet14", num_classes=10).eval(), DESCRIPTION)
    monkeypatch.setattr(account, "load_teachers", lambda _: [teacher])
    return account.run(
        Job(
            name="account",
            folder=tmp_path,
            run_folder=tmp_path,
            recipe=RECIPE,
            arguments={"students": list(results)[1:], "label": "simkd"},
            device=torch.device("cpu"),
            workers=0,
            recipe_fingerprint="0123abcd",
        )
    )


def test_every_network_once_and_in_order(outcome: Outcome) -> None:
    rows = [(row["label"], row["role"]) for row in outcome.values["networks"]]
    assert rows == [
        ("teacher", "teacher"),
        ("student", "student"),
        ("simkd", "deployed"),
        ("kd", "deployed"),
    ]
    assert set(outcome.measured["latency"]) == {"teacher", "student", "simkd", "kd"}
    assert all(set(t) == {"1", "2"} for t in outcome.measured["latency"].values())
    json.dumps([outcome.values, outcome.measured], allow_nan=False)


def test_ratios_follow_from_the_counts(outcome: Outcome) -> None:
    teacher, student, simkd, kd = (SimpleNamespace(**r) for r in outcome.values["networks"])
    assert student.parameters == count_parameters(build("resnet8", num_classes=10))
    assert simkd.projector_parameters == 3 * 3 + 3
    assert simkd.parameters == student.parameters + 12
    assert simkd.macs == student.macs + 16 * 16 * 9
    assert simkd.flops == 2 * simkd.macs
    assert simkd.pruning_ratio_percent == pytest.approx(
        100 - 100 * simkd.parameters / teacher.parameters
    )
    assert simkd.pruning_ratio_cost_points == pytest.approx(100 * 12 / teacher.parameters)
    assert simkd.projector_to_student_percent == pytest.approx(100 * 12 / student.parameters)
    assert (kd.pruning_ratio_cost_points, kd.projector_parameters) == (0, 0)
    assert kd.pruning_ratio_percent == simkd.plain_pruning_ratio_percent


def test_parameters_are_those_before_folding(outcome: Outcome) -> None:
    kd = next(r for r in outcome.values["networks"] if r["label"] == "kd")
    assert kd["parameters"] == count_parameters(build("resnet8", num_classes=10))
    assert kd["size_bytes"] > 4 * kd["parameters"]
