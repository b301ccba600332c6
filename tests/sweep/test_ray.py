"""A sweep on Ray: the same runs as on one machine, ended when the sweep is."""

import functools
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import yaml

from compress.errors import UserError
from compress.sweep import command, execution, ray_cluster
from compress.sweep.processes import Command, Runner
from compress.sweep.ray_cluster import on_ray
from tests.sweep.test_processes import endless, is_alive, pid_in
from tests.sweep.test_sweep import small
from tests.waiting import HANG, wait_until

ray = pytest.importorskip("ray", reason="Ray is not installed")

_SECONDS = 6  # between two attempts at cancelling a task, as in a sweep


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", functools.partial(ray.init, num_cpus=2))
        # Ray gives its own processes 30 seconds to start, on a loaded machine as well.
        slow = {**vars(time), "monotonic": lambda: time.monotonic() * 30 / HANG}
        patch.setattr("ray._private.node.time", SimpleNamespace(**slow))
        with on_ray("local", cpus=1, gpus=0) as found:
            yield found


def test_a_command_runs_on_a_node_in_the_same_folder(runner: Runner) -> None:
    code = "import os, sys; print(os.getcwd(), os.getppid()); sys.exit(3)"
    ended = runner(Command(("-c", code), ()), Event())
    folder, parent = ended.output.split()
    assert ended.code == 3
    assert folder == os.getcwd()
    assert int(parent) != os.getpid(), "it is Ray's, not ours"


def test_a_lost_folder_is_told(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    monkeypatch.setattr(os, "getcwd", lambda: str(tmp_path / "here"))
    ended = runner(Command(("-c", ""), ()), Event())
    assert ended.code == 2
    assert "has no folder" in ended.output


def test_a_stopped_task_takes_its_process_with_it(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The task is cancelled as often as it takes, and not given up.
    monkeypatch.setattr(ray_cluster, "_ATTEMPTS", int(HANG / _SECONDS))
    monkeypatch.setattr(ray_cluster, "_PATIENCE", HANG)
    stopped = Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(runner, endless(tmp_path / "pid"), stopped)
        pid = pid_in(tmp_path / "pid")
        os.kill(pid, 0)
        stopped.set()
        with pytest.raises(KeyboardInterrupt):
            future.result(HANG)
    wait_until(lambda: not is_alive(pid), "the process's end")


def test_a_sweep_on_ray_trains_its_cells(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: list[object] = []

    def started(address: str, *, cpus: float, gpus: float) -> AbstractContextManager[Runner]:
        arguments.extend((address, cpus, gpus))
        return nullcontext(runner)

    monkeypatch.setattr(execution, "on_ray", started)
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(
        yaml.safe_dump(small(methods=[{"name": "none", "trials": 1}], paper={}))
    )
    assert command.main(["small.yaml", "--out", "out", "--ray", "--cpus-per-run", "2"]) == 0
    assert arguments == ["local", 2.0, 0.0]
    rows = json.loads(Path("out/table.json").read_text(encoding="utf-8"))
    assert [row["trials"] for row in rows] == [1, 1]
    assert "epoch" in Path("out/cells/big-thin/none/log.txt").read_text(encoding="utf-8")


def test_what_no_node_has_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    from compress.sweep.ray_cluster import _say_what_lacks

    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 1.0}},
    ]
    _say_what_lacks(nodes, {"CPU": 4.0, "GPU": 0.0})
    assert capsys.readouterr().out == ""
    _say_what_lacks(nodes, {"CPU": 1.0, "GPU": 0.5})
    assert "no node of the cluster has 1 CPU and 0.5 GPU" in capsys.readouterr().out


def test_without_ray_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(small()), encoding="utf-8")
    assert command.main([str(file), "--out", str(tmp_path / "out"), "--ray"]) == 2
    assert "pip install 'compress[ray]'" in capsys.readouterr().out


def test_an_address_without_ray_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    refused = pytest.raises(UserError, match=f"--ray 127.0.0.1:{port}: there is no Ray")
    with refused, on_ray(f"127.0.0.1:{port}", cpus=1, gpus=0):
        pass
