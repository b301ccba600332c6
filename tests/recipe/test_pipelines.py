"""Every recipe below pipelines/: in order, buildable, and listed in pipelines/README.md."""

import functools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from compress import models
from compress.accounting import account_pair, pairs
from compress.data import IMAGE_SIZES
from compress.pipeline import STAGES
from compress.recipe import Recipe, apply_override, check_shape, read_yaml
from compress.run import probe as probe_module
from compress.run.checks import check_recipe
from compress.run.probe import probe
from compress.sweep.schema import check_sweep, recipe_of
from compress.taps import discover
from eval.transfer.command import parser as transfer_parser
from eval.transfer.request import read_request
from export.detectron2.config import SCHEDULES
from tests.eval.runs import write_run

ROOT = Path(__file__).parents[2] / "pipelines"
TABLES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("tables/*.yaml"))
FILES = sorted({path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.yaml")} - {*TABLES})
CLASSES = {
    "camvid": 11,
    "cityscapes": 19,
    "cifar100": 100,
    "digit_pairs": 100,
    "digits": 10,
    "image_folder": 1000,
}

# | [`file`](file) | teacher -> student | data | SimKD | projector parameters | pruning ratio |
ROW = re.compile(r"^\| \[`(.+?)`\]\((.+?)\) \|(.*)\|$", re.MULTILINE)

# Each architecture is built, tapped and counted once in this file: no test trains or changes one.
_build, _discover = functools.cache(models.build), functools.cache(discover)
_counted = functools.cache(pairs.count_network)


@pytest.fixture(autouse=True)
def _once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "build", _build)
    monkeypatch.setattr(probe_module, "discover", _discover)
    monkeypatch.setattr(pairs, "discover", _discover)
    monkeypatch.setattr(pairs, "count_network", _counted)


def read(file: str) -> Recipe:
    recipe, problems = check_shape(read_yaml(ROOT / file))
    assert recipe is not None, problems
    return recipe


def has_counts(file: str) -> bool:
    """Not where they depend on the user's own classes or network."""
    recipe = read(file)
    own_data = "/" not in file and recipe.data.name == "image_folder"
    return not own_data and not recipe.student.model.arguments


def rows() -> dict[str, list[str]]:
    """File -> the other cells of its row in pipelines/README.md."""
    found = ROW.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    found = [row for row in found if not row[0].startswith("tables/")]
    assert all(shown == target for shown, target, _ in found)
    assert len({shown for shown, _, _ in found}) == len(found), "a file stands twice"
    return {shown: [c.strip() for c in cells.split("|")] for shown, _, cells in found}


def account(recipe: Recipe) -> dict[str, Any]:
    teacher, data, method = recipe.teacher[0].model, recipe.data, recipe.distill.method
    assert teacher is not None
    size = data.image_size or IMAGE_SIZES[data.name]
    return account_pair(
        teacher=teacher.name,
        student=recipe.student.model.name,
        method={"name": method.name, **method.arguments},
        num_classes=data.classes or CLASSES[data.name],
        input_shape=(3, size, size),
    )


@pytest.mark.parametrize("file", FILES)
def test_a_recipe_is_in_order_and_its_networks_and_methods_fit(file: str) -> None:
    recipe = read(file)
    # Where data lie is the user's to say.
    assert [p for p in check_recipe(recipe, STAGES) if ".data.root: folder" not in p] == []
    _, problems = probe(recipe, recipe.data.classes or CLASSES[recipe.data.name])
    assert problems == []


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("simkd")])
def test_a_recipe_says_how_it_is_run(file: str) -> None:
    header = "".join(
        line for line in (ROOT / file).read_text(encoding="utf-8").splitlines() if line[:1] == "#"
    )
    assert f"compress run pipelines/{file} " in header


@pytest.mark.parametrize("file", [f for f in FILES if "/" in f])
def test_a_recipe_of_a_pair_is_named_after_it(file: str) -> None:
    recipe = read(file)
    teacher = recipe.teacher[0].model
    assert teacher is not None
    names = [name.rpartition(":")[2] for name in (teacher.name, recipe.student.model.name)]
    assert Path(file).name == "-".join(names) + ".yaml"


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("simkd/")])
def test_the_learning_rate_is_the_papers(file: str) -> None:
    recipe = read(file)
    is_mobile = recipe.student.model.name.startswith(("mobilenet", "shufflenet"))
    assert recipe.distill.train.lr == (0.01 if is_mobile else 0.05)
    assert recipe.teacher[0].train is not None
    assert recipe.teacher[0].train.lr == 0.05


MOCO = "transfer/resnet101-resnet50.yaml"


def test_the_transfer_command_of_the_header_asks_what_the_recipe_does(tmp_path: Path) -> None:
    text = (ROOT / MOCO).read_text(encoding="utf-8").replace("\\\n#", "")
    (line,) = re.findall(r"compress eval detection (RUN .*)", text)
    words = shlex.split(line.replace("RUN", str(write_run(tmp_path / "run"))))
    request = read_request("detection", transfer_parser("detection").parse_args([*words]))
    entry = read(MOCO).transfer[0]
    assert (request.part.train, request.part.init) == (entry.train, entry.init)
    given = json.loads(json.dumps({"seeds": request.part.seeds, **request.arguments}))
    assert given == entry.arguments
    (data,) = request.data.values()
    assert data | {"root": ""} == {"name": "voc", **entry.data.arguments, "root": ""}


@pytest.mark.parametrize(("number", "schedule"), [(0, "voc_24k"), (1, "coco_2x"), (1, "coco_1x")])
def test_detections_schedules_are_those_of_the_exported_config(number: int, schedule: str) -> None:
    raw, text = read_yaml(ROOT / MOCO), (ROOT / MOCO).read_text(encoding="utf-8")
    if schedule == "coco_1x":
        for override in re.findall(r"^#   --set (transfer\.1\.\S+)$", text, re.MULTILINE):
            apply_override(raw, override)
    recipe, problems = check_shape(raw)
    assert recipe is not None, problems
    train, solver = recipe.transfer[number].train, SCHEDULES[schedule]["SOLVER"]
    assert train.iterations == solver["MAX_ITER"]
    shares = [*train.schedule.arguments["milestones"], train.schedule.arguments["warmup"]]
    usual = 1000  # detectron2's own WARMUP_ITERS
    steps = [*solver["STEPS"], solver.get("WARMUP_ITERS", usual)]
    assert [share * train.iterations for share in shares] == pytest.approx(steps, abs=1)


def test_the_table_lists_every_recipe() -> None:
    assert sorted(rows()) == FILES


# | [`file`](file) | what it is |
SWEEP_ROW = re.compile(r"^\| \[`(tables/.+?)`\]\((.+?)\) \|[^|]*\|$", re.MULTILINE)


def test_every_sweep_is_listed() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert sorted(shown for shown, _ in SWEEP_ROW.findall(text)) == TABLES


@pytest.mark.parametrize("file", TABLES)
def test_a_sweep_is_in_order_and_says_how_it_is_run(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert f"compress sweep pipelines/{file} " in text
    sweep, problems = check_sweep(read_yaml(ROOT / file))
    assert sweep is not None, problems
    for pair in sweep.pairs:
        recipe, problems = check_shape(recipe_of(sweep, pair, list(sweep.methods)))
        assert recipe is not None, problems
        # Where downloaded checkpoints lie is the user's to say.
        problems = check_recipe(recipe, STAGES)
        assert [p for p in problems if not p.startswith("teacher.weights: 'checkpoints/")] == []
        if "_table" in file:
            is_mobile = recipe.student.model.name.startswith(("mobilenet", "shufflenet"))
            assert recipe.distill.train.lr == (0.01 if is_mobile else 0.05)
            printed = {row.partition("/")[0] for row in sweep.paper}  # "/": judged beside
            assert printed - {"teacher"} == {method.row for method in sweep.methods}


@pytest.mark.parametrize("file", FILES)
def test_the_table_holds_what_accounting_counts(file: str) -> None:
    pair, _, paper, projector, ratio = rows()[file]
    recipe = read(file)
    teacher = recipe.teacher[0].model
    assert teacher is not None
    names = [name.rpartition(":")[2] for name in (teacher.name, recipe.student.model.name)]
    assert pair == " -> ".join(names)
    is_simkd = recipe.distill.method.name == "simkd"
    if is_simkd and ("/" in file or file == "simkd_cifar.yaml"):
        header = (ROOT / file).read_text(encoding="utf-8").replace("\n# ", " ")
        assert f"SimKD {paper}." in header
    else:
        assert paper == "-"
    if not has_counts(file):
        assert (projector, ratio) == ("-", "-")
        return
    costs = account(recipe)
    assert projector == f"{costs['projector_parameters']:,}"
    assert ratio == f"{costs['pruning_ratio_percent']:.2f}"
