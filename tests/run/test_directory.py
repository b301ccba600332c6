"""The run directory: atomic, locked, owned by one recipe, and nothing in it is ever lost."""

import signal
from pathlib import Path

import pytest
import torch

from compress.errors import UserError
from compress.run.directory import RunDirectory
from compress.stages.job import Outcome
from compress.storage.files import read_json, read_tensors, write_json, write_tensors
from compress.storage.fingerprints import changed_fields, fingerprint_of
from compress.storage.results import read_result
from tests.processes import start
from tests.waiting import wait_until


def finish(run: RunDirectory, stage: str, fields: dict[str, object], value: int = 1) -> None:
    run.begin(stage, fields)
    (run.stage_folder(stage) / "weights").write_text(str(value))
    run.finish(stage, fields, Outcome({"value": value}, {"seconds": 0.1}))


def test_a_stage_is_finished_for_exactly_its_fields(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "r", "r")
    with run.open():
        finish(run, "teacher", {"seed": 0})
        assert run.is_finished("teacher", {"seed": 0})
        assert not run.is_finished("teacher", {"seed": 1})
        assert run.differences("teacher", {"seed": 1}) == ["seed (0 -> 1)"]
        run.begin("fuse", {"seed": 0})
        assert not run.is_finished("fuse", {"seed": 0})


def test_a_superseded_result_is_kept_and_can_come_back(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "r", "r")
    with run.open():
        finish(run, "distill/kd", {"lr": 1}, value=1)
        old = run.supersede("distill/kd")
        assert old is not None
        assert (old / "weights").read_text() == "1"
        finish(run, "distill/kd", {"lr": 2}, value=2)
        run.supersede("distill/kd")
        assert not run.restore("distill/kd", {"lr": 3})
        assert run.restore("distill/kd", {"lr": 1})
        assert (run.stage_folder("distill/kd") / "weights").read_text() == "1"
        assert len(list((run.folder / "superseded").iterdir())) == 1


def test_a_folder_of_unknown_origin_is_put_aside_not_resumed(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "r", "r")
    with run.open():
        finish(run, "distill/kd", {"lr": 1})
        (run.stage_folder("distill/kd") / "fields.json").unlink()
        assert run.differences("distill/kd", {"lr": 2}) == ["its fields.json is missing"]
        assert run.differences("distill/none", {"lr": 2}) == []


def test_a_half_finished_training_comes_back_too(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "r", "r")
    with run.open():
        (run.begin("teacher", {"lr": 1}) / "checkpoint").write_text("half")
        run.supersede("teacher")
        assert run.restore("teacher", {"lr": 1})
        assert not run.is_finished("teacher", {"lr": 1})
        assert (run.stage_folder("teacher") / "checkpoint").read_text() == "half"


def test_a_users_own_folder_is_left_alone(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "r", "r")
    with run.open():
        (tmp_path / "r/mine").mkdir()
        (tmp_path / "r/mine/fields.json").write_text("{}")
        run.shelve_unplanned(["teacher"])
        assert (tmp_path / "r/mine/fields.json").is_file()


@pytest.mark.parametrize("content", ["[]", "{}", "3"])
def test_a_result_of_the_wrong_shape_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher/result.json").write_text(content)
    with pytest.raises(UserError, match=r"result\.json is damaged"):
        read_result(tmp_path, "teacher")


def test_stages_that_are_not_planned_are_put_aside(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "r", "r")
    with run.open():
        for stage in ("teacher", "distill/kd", "distill/none"):
            finish(run, stage, {})
        run.shelve_unplanned(["teacher", "distill/none"])
        assert not run.stage_folder("distill/kd").exists()
        assert run.is_finished("distill/none", {})
        assert run.restore("distill/kd", {})


def test_a_directory_of_another_recipe_is_refused(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, "one").open():
        pass
    with (
        pytest.raises(UserError, match=r"belongs to recipe 'one', not to 'two'"),
        RunDirectory(tmp_path, "two").open(),
    ):
        pass


def test_a_directory_with_other_files_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with (
        pytest.raises(UserError, match=r"holds files and is no run directory"),
        RunDirectory(tmp_path, "r").open(),
    ):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_unwritable_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UserError, match=r"cannot write to run directory .*--out"),
        RunDirectory(tmp_path / "file" / "r", "r").open(),
    ):
        pass


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import signal; from pathlib import Path;"
        "from compress.run.directory import RunDirectory\n"
        f"with RunDirectory(Path({str(tmp_path / 'run')!r}), 'r').open():\n"
        "    print('open', flush=True); signal.pause()"
    )
    with start(["-c", code], tmp_path / "output.txt") as other:
        wait_until(lambda: other.output.read_text() == "open\n", "the other process")
        with (
            pytest.raises(UserError, match=r"in use by another process"),
            RunDirectory(tmp_path / "run", "r").open(),
        ):
            pass
        other.signal(signal.SIGKILL)
        assert other.wait() == (-signal.SIGKILL, "open\n")
    with RunDirectory(tmp_path / "run", "r").open():
        pass


def test_changed_fields_are_named_by_path() -> None:
    before = {"data": {"classes": 10, "name": "x"}, "seed": 0}
    after = {"data": {"classes": 5, "name": "x"}, "seed": 0, "new": True}
    assert changed_fields(before, after) == ["data.classes (10 -> 5)", "new (None -> True)"]


def test_changed_fields_of_lists_are_named_by_entry() -> None:
    train = {"epochs": 8, "schedule": {"milestones": [0.5, 0.75]}}
    before = {"teacher": [{"train": train}, {"train": train}]}
    other = {"epochs": 12, "schedule": {"milestones": [0.5, 0.9]}}
    assert changed_fields(before, {"teacher": [{"train": train}, {"train": other}]}) == [
        "teacher.1.train.epochs (8 -> 12)",
        "teacher.1.train.schedule.milestones.1 (0.75 -> 0.9)",
    ]
    (fewer,) = changed_fields(before, {"teacher": [{"train": train}]})
    assert fewer.startswith("teacher ([{")
    assert len(fewer) < 300


def test_a_fingerprint_ignores_the_order_of_keys() -> None:
    assert fingerprint_of({"a": 1, "b": [2]}) == fingerprint_of({"b": [2], "a": 1})
    assert fingerprint_of({"a": 1}) != fingerprint_of({"a": 2})


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match=r"not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert read_json(tmp_path / "x.json") == {"a": 1}


def test_tensors_of_any_layout_come_back_equal(tmp_path: Path) -> None:
    shared = torch.randn(4, 4)
    tensors = {
        "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "one": shared,
        "other": shared.T,
        "count": torch.tensor(3),
    }
    write_tensors(tmp_path / "t.safetensors", tensors, {"note": "x"})
    got, metadata = read_tensors(tmp_path / "t.safetensors")
    assert metadata == {"note": "x"}
    assert all(torch.equal(got[k], v) for k, v in tensors.items())


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match=r"x\.json is damaged"):
        read_json(tmp_path / "x.json")
