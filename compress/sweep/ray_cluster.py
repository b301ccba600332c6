"""The runs of a sweep as tasks of a Ray cluster: Ray decides where and when, nothing else changes.

Every node needs this package and sees the sweep's folder, the data and the working directory under
the same paths, as on a shared file system.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from compress.console.messages import log
from compress.errors import UserError
from compress.sweep.processes import Command, Ended, Runner, run_process

LOCAL = "local"
_PAUSE = 0.2  # seconds between two looks at a task
_PATIENCE = 30.0  # seconds that a task has to end its process
_ATTEMPTS = 5  # at cancelling a task, within that time


@contextmanager
def on_ray(address: str, *, cpus: float, gpus: float) -> Iterator[Runner]:
    """Connect to run commands on the cluster at `address`, each with so many CPUs and GPUs.

    Args:
        address: as of `ray.init`; `local` starts a Ray of this machine that ends with the block.

    Raises:
        UserError: Ray is not installed, or there is none at the address.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs Ray; install it: pip install 'compress[ray]'") from None
    own: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    at_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _reach(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, at_sigterm)  # Ray has put its own in its place
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--ray {address}: there is no Ray to work with ({reason})") from None
    try:
        _say_what_lacks(ray.nodes(), {"CPU": cpus, "GPU": gpus})  # type: ignore[no-untyped-call]
        yield _runner(cpus, gpus)
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Ray itself tries a wrong HOST:PORT for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()


def _say_what_lacks(nodes: list[dict[str, Any]], wanted: dict[str, float]) -> None:
    """A cluster may still grow, so that what no node has is no mistake."""
    offered = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(all(node.get(k, 0) >= v for k, v in wanted.items()) for node in offered):
        resources = " and ".join(f"{v:g} {k}" for k, v in wanted.items() if v)
        log(f"no node of the cluster has {resources} for a run; the runs wait until one has")


def _runner(cpus: float, gpus: float) -> Runner:
    import ray

    task = ray.remote(num_cpus=cpus, num_gpus=gpus)(_work)

    def run(command: Command, stopped: Event) -> Ended:
        work = task.remote(command, os.getcwd(), max(1, int(cpus)))
        while not ray.wait([work], timeout=_PAUSE)[0]:
            if stopped.is_set():
                _cancel(work)
                raise KeyboardInterrupt
        try:
            ended: Ended = ray.get(work)
        except ray.exceptions.RayError as error:
            return Ended(1, str(error))
        return ended

    return run


def _cancel(work: Any) -> None:
    """End a task and its process; seen once: a cancellation that reached nobody."""
    import ray

    for _ in range(_ATTEMPTS):
        ray.cancel(work)
        if ray.wait([work], timeout=_PATIENCE / _ATTEMPTS)[0]:
            return
    ray.cancel(work, force=True)


def _work(command: Command, folder: str, threads: int) -> Ended:
    """On a node: the command as a process; Ray cancels with KeyboardInterrupt, which ends it."""
    if not Path(folder).is_dir():
        host = socket.gethostname()
        return Ended(2, f"error: node {host} has no folder {folder}; share it with all nodes")
    os.chdir(folder)
    return run_process(command, Event(), threads=threads)
