"""The diagnosis where figures contradict each other: floors above the step, load without want, gains beyond what a step has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from remote_train.metrics.diagnosis import diagnose
from remote_train.metrics.profile import Profile, parse_profile
from remote_train.metrics.telemetry import HostUse, parse_telemetry
from tests.metrics.meter_lines import count, gpu_host, host, sample, start, window
from tests.metrics.test_diagnosis import BF16, CPU, GPU, gains, launched, tiny


def fast(step: float, **counted: float | str) -> Profile:
    """A step of so many seconds on a GPU, of 400 operations."""
    windows = [window(100 * step, 100), window(100 * step, 100)]
    return parse_profile([start("cuda"), count(**BF16, **counted), *windows])


def test_a_step_disproves_a_floor_above_it() -> None:
    # 400 operations x 5 us are 2 ms: not of a step of 0.3 ms, which a CUDA graph launched; of 1.8 ms they are all.
    found = diagnose(fast(0.0003), GPU, HostUse())
    assert [floor.name for floor in found.floors] == ["matmul"]
    assert found.bottleneck == "unknown"
    found = diagnose(fast(0.0018), GPU, HostUse())
    assert found.bottleneck == "launch-bound"
    assert {floor.name: floor.seconds for floor in found.floors}["launch"] == pytest.approx(0.0018)
    # 8 GB at 504 GB/s are 16 ms: of a step of 5 ms caches held most.
    found = diagnose(fast(0.005, bytes=8e9), GPU, HostUse())
    assert "memory" not in {floor.name for floor in found.floors}
    assert found.bottleneck != "memory-bound"


def test_load_beside_idle_cpus_takes_nothing_away() -> None:
    # 64 CPUs of which 38 are idle: four threads that got 1.5 CPUs' worth had no more to do.
    idle = parse_telemetry([host(run=1.5, load=30.0, busy=0.4)] * 3)
    found = diagnose(tiny(threads=4), CPU, idle)
    assert "Others use this CPU" not in found.sentence
    assert "share" not in gains(found)
    full = parse_telemetry([host(run=1.5, load=30.0, busy=0.99)] * 3)
    assert "Others use this CPU" in diagnose(tiny(threads=4), CPU, full).sentence
    unknown = parse_telemetry([host(run=1.5, load=30.0, busy=None)] * 3)
    assert "Others use this CPU" in diagnose(tiny(threads=4), CPU, unknown).sentence


def test_no_gain_takes_waiting_for_data_away() -> None:
    # A fifth of the time is waiting for data: launches done with, five times as fast at most.
    found = diagnose(launched(*[window(0.3, 100, data=0.06)] * 40), replace(GPU, peak=1e15), HostUse())
    assert found.bottleneck == "launch-bound"
    named = gains(found)
    for key in ("batch", "compile", "graphs"):
        gain = named[key]
        assert gain is not None
        assert 1.0 < gain[0] <= gain[1] <= 1 / found.shares["data"], key
    # 64 batches wait 64 times as long: 0.8 + 64 x 0.2 of a step.
    assert named["batch"] is not None
    share = found.shares["data"]
    assert named["batch"][1] == pytest.approx(64 / (1 - share + 64 * share))
    crowded = parse_telemetry([host(run=0.25, load=9.0, busy=1.0)] * 3)
    waiting = diagnose(tiny(window(2.0, data=0.65)), CPU, crowded)
    gain = gains(waiting)["gpu"]
    assert gain is not None
    assert gain[1] <= 1 / waiting.shares["data"]


def test_waiting_for_data_is_named_beside_more_of_evaluation() -> None:
    found = diagnose(
        parse_profile([start(), count(), window(3.0, data=0.9, eval=1.05), sample()]), CPU, HostUse()
    )
    assert found.bottleneck == "data-bound"


def test_a_gpu_that_is_left_idle_is_named() -> None:
    idle, used = (parse_telemetry([gpu_host(utilization=load)] * 3) for load in (0.0, 0.6))
    found = diagnose(tiny(device="cpu"), GPU, idle)
    assert found.bottleneck == "CPU-bound"
    assert "leaves the RTX 4070 Ti idle" in found.sentence
    # An optimizer that is offloaded to the CPU, a GPU that waits, and one that tells nothing are none.
    for device, use in (("cpu", used), ("cuda", idle), ("cpu", HostUse())):
        assert "idle" not in diagnose(tiny(device=device), GPU, use).sentence
