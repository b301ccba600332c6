"""The timing protocol, with callables that record when they are called."""

import time

import pytest
import torch

from compress.accounting import LatencyMeasurement, measure_latency, protocol


def test_rounds_are_interleaved_and_turn() -> None:
    calls: list[str] = []
    latencies = measure_latency(
        {name: lambda name=name: calls.append(name) for name in "abc"}, warmup=1, rounds=3
    )
    rounds = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(rounds) == 4
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert [r[0] for r in rounds[1:]] == ["a", "b", "c"]
    assert {name: one.rounds for name, one in latencies.items()} == {"a": 3, "b": 3, "c": 3}


def test_warmup_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, slow_first = [0.0], iter([0.2, 0.0, 0.0, 0.0])
    monkeypatch.setattr("compress.accounting.latency.time.perf_counter", lambda: clock[0])

    def call() -> None:
        clock[0] += next(slow_first)

    assert measure_latency({"x": call}, warmup=1, rounds=3)["x"].p95_ms == 0


def test_a_sleep_takes_its_time() -> None:
    latencies = measure_latency({"x": lambda: time.sleep(0.01)}, warmup=0, rounds=3)
    assert 10 <= latencies["x"].median_ms <= latencies["x"].p95_ms


def test_waiting_encloses_every_call() -> None:
    events: list[str] = []
    measure_latency(
        {"x": lambda: events.append("call")},
        warmup=0,
        rounds=2,
        synchronise=lambda: events.append("wait"),
    )
    assert events == ["wait", "call", "wait"] * 2


def test_median_and_95th_percentile(monkeypatch: pytest.MonkeyPatch) -> None:
    # Readings in pairs, start and stop: durations of 1, 2, ..., 21 ms.
    readings = iter([t for n in range(1, 22) for t in (float(n), n + n / 1000)])
    monkeypatch.setattr("compress.accounting.latency.time.perf_counter", lambda: next(readings))
    latencies = measure_latency({"x": lambda: None}, warmup=0, rounds=21)["x"]
    assert latencies.median_ms == pytest.approx(11)
    assert latencies.p95_ms == pytest.approx(20)  # 95 % of the way from the 1st to the 21st


def test_one_round_and_impossible_ones() -> None:
    one = measure_latency({"x": lambda: None}, warmup=0, rounds=1)["x"]
    assert one.median_ms == one.p95_ms
    assert measure_latency({}, rounds=1) == {}
    with pytest.raises(ValueError, match="rounds"):
        measure_latency({"x": lambda: None}, rounds=0)


def test_units_stand_in_the_keys() -> None:
    assert LatencyMeasurement(1.0, 2.0, 3).as_dict() == {
        "median_ms": 1.0,
        "p95_ms": 2.0,
        "rounds": 3,
    }
    conditions = protocol(torch.device("cpu"), warmup=1, rounds=2)
    assert conditions["device"] == "cpu"
    assert conditions["threads"] == torch.get_num_threads()
