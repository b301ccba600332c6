"""One timing protocol for anything that can be called: torch modules and ONNX sessions alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch


@dataclass(frozen=True)
class LatencyMeasurement:
    """Milliseconds of one call over `rounds` timed calls."""

    median_ms: float
    p95_ms: float
    rounds: int

    def as_dict(self) -> dict[str, float | int]:
        """The keys that every result and report uses."""
        return asdict(self)


def measure_latency(
    callables: Mapping[str, Callable[[], object]],
    *,
    warmup: int = 3,
    rounds: int = 20,
    synchronise: Callable[[], None] | None = None,
) -> dict[str, LatencyMeasurement]:
    """Time each callable `rounds` times, one call of each per round.

    Interleaving lets a slow moment of the machine fall on all candidates instead of on one; the
    order turns by one place per round, so that none always runs in the wake of the same other.

    Args:
        callables: name -> function without arguments.
        warmup: rounds that are run and not timed.
        rounds: rounds that are timed.
        synchronise: called before each clock reading; needed where calls return early (CUDA).
    """
    if rounds < 1 or warmup < 0:
        raise ValueError(f"need rounds >= 1 and warmup >= 0, got {rounds} and {warmup}")
    wait = synchronise or _nothing
    names = list(callables)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        turn = number % max(len(names), 1)
        for name in names[turn:] + names[:turn]:
            wait()
            start = time.perf_counter()
            callables[name]()
            wait()
            if number >= 0:
                times[name].append(1000.0 * (time.perf_counter() - start))
    return {name: _summary(values) for name, values in times.items()}


def protocol(device: torch.device, *, warmup: int, rounds: int) -> dict[str, str | int]:
    """Conditions of a latency, reported beside it: device, threads, dtype, warm-up and rounds."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "warmup": warmup,
        "rounds": rounds,
    }


def speedup_percent(student_ms: float, teacher_ms: float) -> float:
    """Share of the teacher's time that is saved, as CoCoRD prints it: 100 (1 - student / teacher).

    Negative where the student is the slower one (the paper prints a dash). It is a ratio of
    measured times, not of MACs: CoCoRD's MobileNetV2 has 2 % of VGG13's MACs and is slower.
    """
    if teacher_ms <= 0:
        raise ValueError(f"a teacher that takes {teacher_ms} ms has no speed-up")
    return 100.0 * (1.0 - student_ms / teacher_ms)


def _summary(values: list[float]) -> LatencyMeasurement:
    # quantiles() interpolates and needs two values.
    p95 = statistics.quantiles(values, n=20, method="inclusive")[-1] if values[1:] else values[0]
    return LatencyMeasurement(median_ms=statistics.median(values), p95_ms=p95, rounds=len(values))


def _nothing() -> None:
    """Calls that return when they are done need no waiting."""
