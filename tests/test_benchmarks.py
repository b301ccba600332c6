"""The benchmarks compare what they say: the same work, in turns, with honest shares."""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import engine
import full_run
import pair
import plain_loop
import scaling
import step
from plain_terms import Memory, Projector
from turns import Candidate, interleaved

from compress.data import Batch, Preprocessing
from compress.data.augment import shift_and_flip
from tests import processes
from tests.waiting import wait_until

IMAGES = 40


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of `pair.write` with small networks, batches and memories."""
    monkeypatch.setattr(pair, "STUDENT", "resnet8")
    monkeypatch.setattr(pair, "TEACHER", "resnet14")
    monkeypatch.setattr(pair, "CLASSES", 10)
    monkeypatch.setattr(pair, "BATCH", 8)
    monkeypatch.setattr(plain_loop, "BATCH", 8)
    monkeypatch.setattr(plain_loop, "NEGATIVES", 6)
    pair.write(tmp_path, pair.random_data(IMAGES))
    return tmp_path


@pytest.mark.parametrize("method", pair.WEIGHTS)
def test_plain_loop_and_engine_minimise_the_same(kept: Path, method: str) -> None:
    module = engine.Engine(method, kept, engine.Variant(), "cpu").modules[0].train()
    own = module.method
    index = torch.arange(8)
    images, labels = torch.randn(8, 3, 32, 32), index % 10
    view = torch.zeros(8, dtype=torch.long)
    batch = Batch((images,), (view,), labels, index, epoch=0, step=0, view_numbers=(view,))
    student, teacher = pair.networks(kept)
    extra: torch.nn.Module = torch.nn.Identity()
    drawn = torch.empty(0)
    if method == "simkd":
        extra = Projector(64, 64)
        extra.transfer.load_state_dict(own.projector.state_dict())
    if method == "crd":
        own.sampler.negatives = 6
        drawn, contrast = own.draw_rows(batch), own.contrasts[0]
        extra = Memory(64, 64, IMAGES, 6)
        extra.embed_s.load_state_dict(contrast.student_embedding.state_dict())
        extra.embed_t.load_state_dict(contrast.teacher_embedding.state_dict())
        extra.memory_s.copy_(contrast.student_bank)
        extra.memory_t.copy_(contrast.teacher_bank)
    theirs, _ = plain_loop._loss(method, student, teacher, extra, [images, labels, index, drawn])
    ours = sum(module(batch).values())
    torch.testing.assert_close(theirs.reshape(()), ours, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", pair.WEIGHTS)
def test_plain_loop_moves_the_student_alone(kept: Path, method: str) -> None:
    student, teacher = pair.networks(kept)
    before = [{k: v.clone() for k, v in n.state_dict().items()} for n in (student, teacher)]
    data = pair.read(kept)
    run = plain_loop.steps(method, data, (student, teacher), loading=False, device="cpu")
    list(itertools.islice(run, 2))
    assert not torch.equal(student.conv1.weight, before[0]["conv1.weight"])
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[1][name]), name


def test_pictures_are_views_of_their_images(kept: Path) -> None:
    data = pair.read(kept)
    image, label, index, drawn = plain_loop.Pictures(data, negatives=6)[5]
    assert (label, index, drawn[0], len(set(drawn))) == (data.labels[5], 5, 5, 7)
    assert (data.labels[drawn[1:]] != label).all()
    pixels = torch.from_numpy(data.pixels[5]).permute(2, 0, 1).expand(162, -1, -1, -1)
    views = Preprocessing(32, pair.MEAN, pair.STD).normalise(
        shift_and_flip(pixels, torch.arange(162))
    )
    assert (views - image).abs().amax((1, 2, 3)).min() < 1e-5


@pytest.mark.parametrize("name", ["engine", "bfloat16", "cold-cache"])
def test_engine_variants_take_steps(kept: Path, name: str) -> None:
    running = engine.Engine("kd", kept, engine.VARIANTS[name], "cpu", students=2)
    before = [module.student.conv1.weight.clone() for module in running.modules]
    list(itertools.islice(running.steps(), 2))
    for module, weight in zip(running.modules, before, strict=True):
        assert not torch.equal(module.student.conv1.weight, weight)
    assert running.pieces.taken()["pieces"].keys() == {"student", "teacher"}


def test_a_warm_cache_never_runs_the_teacher(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses:
        def __call__(self, _images: torch.Tensor) -> None:
            raise AssertionError("the teacher ran")

        def compiled_rows(self) -> None: ...

    monkeypatch.setattr(engine, "make_fast", lambda *_, **__: Refuses())
    warm, cold = (engine.Variant(cache=kind) for kind in ("warm", "cold"))
    whole_epoch = IMAGES // 8
    list(itertools.islice(engine.Engine("kd", kept, warm, "cpu").steps(), whole_epoch))
    with pytest.raises(AssertionError, match="the teacher ran"):
        list(itertools.islice(engine.Engine("kd", kept, cold, "cpu").steps(), 2))


COUNTS = """
import subprocess, sys, time
from turns import paced
loop = "import time\\nwhile True: open(r'{file}', 'a').write('x'); time.sleep(0.01)"
subprocess.Popen([sys.executable, "-c", loop])
sys.stdout.flush()
for _ in paced():
    time.sleep(0.05)
"""


def _script(folder: Path, code: str) -> list[str]:
    (folder / "turns.py").write_text(Path(step.HERE / "turns.py").read_text())
    (folder / "candidate.py").write_text(code)
    return [sys.executable, str(folder / "candidate.py")]


def _turns_until_longer(candidate: Candidate, file: Path, length: int) -> int:
    """Give turns until the candidate's worker had one, too; the length of its file after them."""

    def is_longer() -> bool:
        candidate.turn(1)
        return file.exists() and file.stat().st_size > length

    wait_until(is_longer, "the worker's turn")
    return file.stat().st_size


def test_candidates_and_their_workers_stand_still_between_turns(tmp_path: Path) -> None:
    file = tmp_path / "written"
    code = COUNTS.replace("{file}", str(file))
    candidate = Candidate("one", _script(tmp_path, code), tmp_path / "log", {})
    try:
        assert candidate.turn(2)["seconds"] > 0.09
        written = _turns_until_longer(candidate, file, 0)
        time.sleep(0.2)
        assert file.stat().st_size == written > 0
        assert _turns_until_longer(candidate, file, written) > written
    finally:
        candidate.end()


def test_a_candidate_that_fails_is_left_out_with_its_last_words(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.mkdir()
    works = _script(good, "from turns import paced\nfor _ in paced(): pass")
    fails = [sys.executable, "-c", "raise SystemExit('no such part')"]
    commands = {"works": works, "fails": fails}
    turns, failed = interleaved(commands, tmp_path, rounds=2, steps=1, threads=1)
    assert failed == {"fails": "no such part"}
    assert [len(rows) for rows in turns.values()] == [2]


def test_shares_and_ratios() -> None:
    pieces = {"student": 1.0, "teacher": 2.0, "backward": 4.0}
    turns = {
        "plain": [{"seconds": 20.0, "peak_mb": 1}, {"seconds": 30.0, "peak_mb": 1}],
        "engine": [{"seconds": s, "peak_mb": 2, "pieces": pieces} for s in (10.0, 10.0)],
    }
    summary = step._summary("engine", turns, 5)
    assert summary["steps_per_second"]["median"] == 0.5
    assert summary["ratio to plain"]["median"] == 2.5
    shares = {name: share["median"] for name, share in summary["shares"].items()}
    assert shares == {"student": 10, "teacher": 20, "backward": 40, "overhead": 30}


def test_slopes_are_exponents_of_growth() -> None:
    assert scaling.slope([1, 2, 4, 8], [5, 40, 320, 2560]) == pytest.approx(3)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_rows_see_the_memory_of_a_step(tmp_path: Path) -> None:
    def row(size: int) -> dict[str, Any]:
        sizes = json.dumps({**scaling.BASE, "batch": size})
        arguments = [str(scaling.__file__), "--row", "rkd", sizes, "--steps", "2"]
        exit_code, printed = processes.run(arguments, tmp_path / f"{size}.txt")
        assert exit_code == 0, printed
        return dict(json.loads(printed))

    small, large = row(32), row(160)
    # Angles of float32: more than one tensor of them lives at once.
    assert large["peak_mb"] > small["peak_mb"]
    assert large["peak_mb"] > 160**3 * 4 / 1e6


def test_a_whole_run_finds_more_in_its_cache_from_block_to_block(kept: Path) -> None:
    cached = engine.Engine("kd", kept, engine.VARIANTS["cold-cache"], "cpu", epochs=6)
    data, networks = pair.read(kept), pair.networks(kept)
    plain = plain_loop.steps("kd", data, networks, loading=False, device="cpu")
    options = argparse.Namespace(variant="cold-cache", epochs=6, block=2, steps=1)
    rows = list(full_run._blocks(cached, {"plain": plain}, options))
    assert [row["block"] for row in rows] == [0, 1, 2]
    hits = [row["hits"] for row in rows]
    assert hits[0] < hits[2] < 0.2  # of 162 views
    summary = full_run._summary(rows, {"plain": plain})["plain"]
    ratios = [r["steps_per_second"]["cold-cache"] / r["steps_per_second"]["plain"] for r in rows]
    assert min(ratios) <= summary["whole_run"] <= max(ratios)
    assert summary["last_block"] == pytest.approx(ratios[-1])
