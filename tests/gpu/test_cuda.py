"""Training on a GPU: the CPU's numbers, steps that do not wait for the device, every stage."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.data import Batch
from compress.distill import Distillation
from compress.engine import TrainSettings
from compress.engine.compiling import CompiledTaps, compile_taps
from compress.engine.loop import OptimizerStep, train
from compress.methods import METHODS, Method
from compress.methods.aekd import AEKD
from compress.methods.aekd_f import AEKDF
from compress.methods.contract import NetworkForward, joined_views
from compress.methods.crd import CRD
from compress.storage.files import read_json
from compress.teacher.inference import FastTeacher, make_fast
from tests.methods import building
from tests.run import test_pipeline

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

# The compiler warns of what it does itself, and a warning that is an error ends it: networks would
# run uncompiled.
pytestmark = [
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
    pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning"),
]

GPU = torch.device("cuda")
PRECISIONS = ("float32", "bfloat16", "float16")


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions without TF32, which rounds to ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(params=METHODS.values(), ids=lambda m: m.__name__)
def method_class(request: pytest.FixtureRequest) -> type[Method]:
    chosen: type[Method] = request.param
    return chosen


def _on(device: torch.device, method_class: type[Method]) -> tuple[Distillation, list[Batch]]:
    """The same module and batches on a device."""
    module = building.distillation(method_class).to(device)
    for tapped in module._teachers:
        tapped.network.to(device)
    return module, [*building.batches(module.method, device=device).epoch(0)]


@pytest.mark.usefixtures("same_draws")
def test_terms_equal_those_of_the_cpu(method_class: type[Method]) -> None:
    (module, there), (copy, here) = _on(building.CPU, method_class), _on(GPU, method_class)
    for a, b in zip(there[0].images, here[0].images, strict=True):
        torch.testing.assert_close(b.cpu(), a, msg="images differ")
    expected, terms = module(there[0]), copy(here[0])
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            terms[name].cpu(),
            value,
            rtol=2e-3,
            atol=1e-4,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.fixture
def same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU gets the random numbers that a CPU drew before it; its own are others."""
    drawn: list[torch.Tensor] = []

    def replaying(draw: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def wrapped(method: Method, batch: Batch, *args: Any, **options: Any) -> torch.Tensor:
            if batch.index.is_cuda:
                return drawn.pop(0).to(GPU)
            drawn.append(draw(method, batch, *args, **options))
            return drawn[-1]

        return wrapped

    monkeypatch.setattr(Method, "draw", replaying(Method.draw))
    monkeypatch.setattr(CRD, "draw_rows", replaying(CRD.draw_rows))


def test_a_step_does_not_wait_for_the_device(method_class: type[Method]) -> None:
    if issubclass(method_class, (AEKD, AEKDF)):
        pytest.skip("solves for the teachers' weights on the CPU")
    module, batches = _on(GPU, method_class)
    module.begin_phase(None, batches[0])
    learn = OptimizerStep(module.train(), TrainSettings(epochs=1, lr=0.01, batch_size=8), GPU)
    totals: dict[str, torch.Tensor] = {}
    feed = building.batches(module.method, device=GPU).epoch(0)
    learn(next(feed), 0.0, totals)  # kernels are loaded and memory is taken
    torch.cuda.synchronize()
    with _waiting_is_an_error():
        learn(next(feed), 0.5, totals)
    assert all(torch.isfinite(total) for total in totals.values())


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_method_learns_in_each_precision(
    method_class: type[Method], precision: Any, tmp_path: Path
) -> None:
    module, batches = _on(GPU, method_class)
    module.begin_phase(None, batches[0])
    history = train(
        module,
        building.batches(module.method, device=GPU),
        TrainSettings(epochs=2, lr=0.01, batch_size=8, precision=precision),
        directory=tmp_path,
        role=precision,
        seed=0,
        device=GPU,
    )
    assert len(history) == 2


# A student that runs once a step, on joined views, on several views, and with a moving copy.
@pytest.mark.parametrize("name", ["kd", "simkd", "dlkd", "cocord"])
def test_cuda_graphs_change_nothing_but_rounding(name: str, tmp_path: Path) -> None:
    rows = {}
    networks: list[CompiledTaps | FastTeacher] = []
    for kind in ("eager", "compiled"):
        module, batches = _on(GPU, METHODS[name])
        if kind == "compiled":
            student, teachers = _compiled(module, len(batches[0].index))
            networks = [student, *teachers]
            forwards = [NetworkForward(teacher) for teacher in teachers]
            module.begin_phase(None, batches[0], student=student, teachers=forwards)
        else:
            module.begin_phase(None, batches[0])
        rows[kind] = train(
            module,
            building.batches(module.method, device=GPU),
            TrainSettings(epochs=3, lr=0.001, batch_size=8),
            directory=tmp_path / kind,
            role=name,
            seed=0,
            device=GPU,
        )
    for eager, compiled in zip(rows["eager"], rows["compiled"], strict=True):
        assert compiled["loss"] == pytest.approx(eager["loss"], rel=1e-2)
    # Where compiling fails, networks run as they are.
    assert all(n.rows() if isinstance(n, CompiledTaps) else n.compiled_rows() for n in networks)


def _compiled(module: Distillation, rows: int) -> tuple[CompiledTaps, list[FastTeacher]]:
    own, together = module.method.context, max(map(len, joined_views(module.method.views)))
    student = compile_taps(
        module.student.train(),
        own.student,
        module.student_taps,
        "student",
        wish="always",
        rows=rows * together,
    )
    assert student is not None
    teachers = [
        make_fast(
            tapped.network,
            known.taps,
            module.teacher_taps(None),
            compile=True,
            precision="float32",
            rows=rows,
        )
        for tapped, known in zip(module._teachers, own.teachers, strict=True)
    ]
    return student, teachers


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("whole")
    engine = {"compile": "always", "teacher": "bfloat16", "share_teacher": True}
    export = {**test_pipeline.TINY["export"], "student": "simkd"}
    recipe = test_pipeline.write(
        folder, engine=engine, export=export, transfer=test_pipeline.TRANSFER
    )
    assert test_pipeline.run(recipe, folder / "run", "--device", "cuda") == 0
    yield folder / "run"


def test_every_stage_runs(whole_run: Path) -> None:
    result = read_json(whole_run / "distill" / "simkd" / "result.json")
    assert result["measured"]["memory"]["device_peak_bytes"] > 0
    assert (whole_run / "report.html").is_file()
    assert (whole_run / "export").is_dir()


def test_a_student_trained_on_a_gpu_is_evaluated_the_same_on_a_cpu(whole_run: Path) -> None:
    student = read_json(whole_run / "distill" / "simkd" / "result.json")
    exported = read_json(whole_run / "export" / "result.json")
    assert exported["values"]["onnx_top1_percent"] == pytest.approx(
        student["values"]["top1_percent"], abs=100 / 60
    )
