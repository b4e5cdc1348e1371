"""The diagnosis: what a training's word is, and gains worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.metrics.diagnosis import MEASURED_TRIES, Diagnosis, diagnose
from remote_train.metrics.floors import DeviceView, amdahl
from remote_train.metrics.profile import Profile, Settings, parse_profile
from remote_train.metrics.telemetry import HostUse, parse_telemetry
from remote_train.metrics.tries import COMPILED_LOSS
from remote_train.metrics.wording import render_gain, render_rate, render_share, render_time
from tests.metrics.meter_lines import count, gpu_host, host, sample, start, window

CPU = DeviceView(
    "cpu",
    "a CPU",
    peak=0.5e12,
    peak_source="measured",
    peaks={"fp32": 0.5e12},
    dispatch=25e-6,
    threads=1,
    cores=1,
)
GPU = DeviceView(
    "cuda",
    "RTX 4070 Ti",
    peak=80.2e12,
    peaks={"bf16": 80.2e12, "tf32": 40.1e12, "fp32": 40.1e12},
    bandwidth=504e9,
    capability=(8, 9),
)
BF16 = {"dtype": "bfloat16"}


def tiny(*more: bytes, device: str = "cpu", counted: Any = None, **settings: Any) -> Profile:
    """The tiny GPT: 50 ms a step, of which the optimizer takes 8."""
    return parse_profile(
        [start(device, **settings), count(**(counted or {})), window(), window(), sample(), *more]
    )


def gains(found: Diagnosis) -> dict[str, tuple[float, float] | None]:
    return {item.id: item.gain for item in found.tries}


def test_amdahl() -> None:
    assert amdahl(0.5, 2.0) == pytest.approx(1 / 0.75)
    assert amdahl(0.5, math.inf) == 2.0
    assert amdahl(0.5, 0.5) == amdahl(0.0, 9.0) == 1.0
    assert amdahl(7.0, math.inf) == pytest.approx(1000.0)


def test_the_tiny_gpt_on_a_cpu_by_hand() -> None:
    """4 GFLOP at 0.5 TFLOP/s are 8 ms, 400 operations x 25 us are 10 ms, of 50 ms; 16 % are the optimizer's."""
    found = diagnose(tiny(), CPU, HostUse())
    assert {floor.name: floor.seconds for floor in found.floors} == pytest.approx(
        {"matmul": 0.008, "launch": 0.010}
    )
    assert found.bottleneck == "CPU-bound"
    assert found.mfu == pytest.approx(0.16)
    for words in ("50.0 ms", "8.00 ms", "10.0 ms", "500 GFLOP/s"):
        assert words in found.sentence
    named = gains(found)
    # One by one to fused: 1/3.3 of 16 %, and half of that ratio at the low end.
    assert named["fused"] == pytest.approx((1 / (0.84 + 0.16 / 1.65), 1 / (0.84 + 0.16 / 3.3)))
    # 18 of 50 ms do not grow with the batch: four batches take 18 + 4 x 32 ms instead of 200. Half of the other 24 ms
    # that are no product grow less, at best not at all: 30 + 4 x 20 ms.
    assert named["batch"] == pytest.approx(((1 + 4 * 50 / (18 + 4 * 32)) / 2, 4 * 50 / (30 + 4 * 20)))
    # 400 operations at 5 to 10 us are 2 to 4 ms on a GPU.
    assert named["gpu"] == pytest.approx((12.5, 25.0))
    assert "workers" not in named
    assert [item.middle for item in found.tries] == sorted(
        (item.middle for item in found.tries), reverse=True
    )


def test_waiting_for_data_is_the_bottleneck_where_it_is_a_quarter() -> None:
    found = diagnose(tiny(window(2.0, data=1.2), workers=0), CPU, HostUse())
    # Of 3 s 1.2 were waited: hidden altogether, 1 / 0.6.
    assert found.bottleneck == "data-bound"
    assert "40 %" in found.sentence
    assert gains(found)["workers"] == pytest.approx((1.25, 1 / 0.6))
    assert next(item for item in found.tries if item.id == "workers").how.startswith(
        "DataLoader(num_workers=2"
    )


@pytest.mark.parametrize(("phase", "word"), [("eval", "evaluation"), ("save", "checkpoints")])
def test_evaluation_and_checkpoints_are_named(phase: str, word: str) -> None:
    found, worse = (
        diagnose(tiny(window(2.0 * more, 20, **{"median": 0.05, phase: more})), CPU, HostUse())
        for more in (1.0, 2.0)
    )
    assert worse.bottleneck == word
    assert gains(found)[phase] == pytest.approx((1 / (2 / 3 + 1 / 6), 1 / (2 / 3 + 1 / 12)))


def test_compute_bound_near_the_peak_is_good_and_left_alone() -> None:
    found = diagnose(tiny(device="cuda", counted={"flops": 2e12, **BF16}), GPU, HostUse())
    assert found.bottleneck == "compute-bound"
    assert "49.9 %" in found.sentence
    assert "good" in found.sentence
    assert not found.tries


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_wrong_denominator_is_no_good_news(device: Literal["cpu", "cuda"]) -> None:
    found = diagnose(
        tiny(device=device, counted={"flops": 9e12, **BF16}), replace(GPU, kind=device), HostUse()
    )
    assert found.bottleneck == "unknown"
    assert "denominator looks wrong" in found.sentence
    assert "good" not in found.sentence
    assert {item.id for item in found.tries} <= set(MEASURED_TRIES)


def test_nothing_is_rounded_to_nothing() -> None:
    assert [render_rate(rate) for rate in (80.2e12, 5.6e11, 3.2e6, 40.0, 0.001)] == [
        "80.2 TFLOP/s",
        "560 GFLOP/s",
        "3.20 MFLOP/s",
        "40.0 FLOP/s",
        "1.0e-03 FLOP/s",
    ]
    assert [render_time(seconds) for seconds in (3.2, 0.0614, 8.2e-4, 1.2e-8, 1e-13)] == [
        "3.20 s",
        "61.4 ms",
        "820 us",
        "12.0 ns",
        "1.0e-04 ns",
    ]


def test_memory_bound_says_how_much_is_moved() -> None:
    moved = {"flops": 0.2e12, "bytes": 20.16e9, "kernels": 400, **BF16}
    found = diagnose(tiny(device="cuda", counted=moved), GPU, HostUse())
    assert found.bottleneck == "memory-bound"
    assert "40.0 ms" in found.sentence
    # 80 % of the step, of which fusion is assumed to save half: 1 / 0.6.
    assert gains(found)["compile"] == pytest.approx((1.0, 1 / 0.6))


def test_what_caches_hold_is_no_floor() -> None:
    found = diagnose(tiny(counted={"bytes": 400 * 1e6}), replace(CPU, bandwidth=10e9), HostUse())
    assert "memory" not in {floor.name for floor in found.floors}
    far = diagnose(tiny(counted={"bytes": 400 * 5e6}), replace(CPU, bandwidth=100e9), HostUse())
    assert {floor.name: floor.seconds for floor in far.floors}["memory"] == pytest.approx(0.02)


def launched(*more: bytes, **settings: Any) -> Profile:
    """A tiny GPT on a GPU: 3 ms a step, of which the host's launches are at least 400 x 5 us."""
    lines = [
        start("cuda", **settings),
        count(**BF16),
        window(0.3, 100),
        window(0.3, 100),
        sample(starved=True),
    ]
    return parse_profile([*lines, *more])


def test_launch_bound_by_hand() -> None:
    found = diagnose(launched(), GPU, HostUse())
    assert found.bottleneck == "launch-bound"
    assert "2.00 ms" in found.sentence
    assert "assumption" in found.sentence
    named = gains(found)
    # A quarter to half of the launches is left; one launch alone leaves 400 kernels x 2 us.
    assert named["compile"] == pytest.approx((2.0, 4.0))
    assert named["graphs"] == pytest.approx((1.2, 3.0 / 0.8))
    # 4 GFLOP at half of 80.2 TFLOP/s are 0.1 ms: 30 times as much fits into the same 3 ms, so 16 x is offered.
    assert named["batch"] == (8.0, 16.0)
    assert "dtype" not in named  # it would not show
    assert named["sync"] is None
    assert next(item for item in found.tries if item.id == "batch").caution is not None


def test_a_measured_dispatch_is_no_assumption() -> None:
    found = diagnose(launched(), replace(GPU, dispatch=6e-6), HostUse())
    assert [floor.assumed for floor in found.floors if floor.name == "launch"] == [False]
    assert "assumption" not in found.sentence


def test_varying_shapes_get_no_graphs_and_compiled_code_no_floor_of_launches() -> None:
    varying = parse_profile([start("cuda"), count(shapes=5, **BF16), window(0.3, 100), sample(starved=True)])
    assert "graphs" not in gains(diagnose(varying, GPU, HostUse()))
    found = diagnose(launched(start("cuda", compiled=True)), GPU, HostUse())
    assert found.bottleneck == "CPU-bound"
    assert "launch" not in {floor.name for floor in found.floors}
    assert "compile" not in gains(found)


@pytest.mark.parametrize(
    ("capability", "peaks", "key"),
    [
        ((8, 0), {"fp32": 19.5e12, "tf32": 156e12, "bf16": 312e12}, "bf16"),
        ((7, 5), {"fp32": 8.1e12, "fp16": 65e12, "bf16": 2e12}, "fp16"),
        ((8, 6), {"fp32": 35.6e12, "tf32": 35.6e12}, None),
    ],
)
def test_arithmetic_that_the_card_has(
    capability: tuple[int, int], peaks: dict[str, float], key: str | None
) -> None:
    view = replace(GPU, capability=capability, peaks=peaks, peak=peaks["fp32"])
    flops = peaks["fp32"] * 0.025  # half of 50 ms
    found = diagnose(tiny(device="cuda", counted={"flops": flops, "bytes": None}), view, HostUse())
    names = [item.name for item in found.tries if item.id == "dtype"]
    assert names == ([f"{key} arithmetic"] if key else [])
    if key:
        gain = gains(found)["dtype"]
        assert gain is not None
        assert gain[0] == pytest.approx(1 / (0.5 + 0.5 * peaks["fp32"] / peaks[key]))


def test_bf16_on_a_cpu_is_named_where_its_peak_is_higher_and_nothing_is_predicted_of_it() -> None:
    slow = replace(CPU, peaks={"fp32": 0.5e12, "bf16": 0.1e12})
    fast = replace(CPU, peaks={"fp32": 0.5e12, "bf16": 2.5e12})
    much = tiny(counted={"flops": 12.5e9})
    assert "dtype" not in gains(diagnose(much, slow, HostUse()))
    found = diagnose(much, fast, HostUse())
    assert gains(found)["dtype"] is None
    assert found.tries[-1].gain is None


def test_threads_are_offered_up_to_the_cores() -> None:
    found = diagnose(tiny(), replace(CPU, cores=4), HostUse())
    # 42 ms are not the optimizer's, 10 of them launches: 32 of 50 ms at most four times as fast.
    assert gains(found)["threads"] == pytest.approx((1.0, 1 / (0.36 + 0.64 / 4)))
    too_many = diagnose(tiny(threads=8), replace(CPU, cores=4), HostUse())
    assert gains(too_many)["threads"] is None
    assert "threads" not in gains(diagnose(tiny(threads=4), replace(CPU, cores=4), HostUse()))


def test_a_fused_optimizer_is_bounded_by_its_memory_traffic() -> None:
    # 28 bytes of 10 million parameters at 70 GB/s are 4 ms of the 8 that it takes: half, and no less.
    profile = tiny(counted={"trainable": 10_000_000})
    gain = gains(diagnose(profile, replace(CPU, bandwidth=70e9), HostUse()))["fused"]
    assert gain is not None
    assert gain[1] == pytest.approx(1 / (0.84 + 0.16 / 2))
    assert "fused" not in gains(diagnose(tiny(fused=True), CPU, HostUse()))
    assert "fused" not in gains(diagnose(tiny(optimizer="Lion"), CPU, HostUse()))


def test_heat_and_power_are_told_from_the_telemetry() -> None:
    hot = parse_telemetry([gpu_host(throttle=["thermal"], celsius=89, sm_mhz=1200)] * 3)
    found = diagnose(tiny(device="cuda", counted=BF16), GPU, hot)
    assert found.bottleneck == "throttled (thermal)"
    assert "89 C" in found.sentence
    assert "1200 MHz" in found.sentence
    capped = parse_telemetry([gpu_host(throttle=["power"], watt_limit=150.0)] * 3)
    found = diagnose(tiny(device="cuda", counted=BF16), GPU, capped)
    assert found.bottleneck == "throttled (power)"
    assert "150 W" in found.sentence
    assert gains(found)["power"] is None
    # A card at its own limit under full load is as it should be.
    full = parse_telemetry([gpu_host(throttle=["power"], watts=285.0)] * 3)
    assert (
        diagnose(tiny(device="cuda", counted={"flops": 2e12, **BF16}), GPU, full).bottleneck
        == "compute-bound"
    )
    warm = parse_telemetry([host(throttled=True, mhz=1400.0)] * 3)
    assert diagnose(tiny(), CPU, warm).bottleneck == "throttled (thermal)"


def test_others_on_the_same_device_are_named() -> None:
    crowded = parse_telemetry([host(run=0.5, load=4.0, busy=1.0)] * 3)
    gain = gains(diagnose(tiny(), CPU, crowded))["share"]
    assert gain == (1.0, 2.0)
    found = diagnose(tiny(), CPU, parse_telemetry([host(run=0.25, load=9.0, busy=1.0)] * 3))
    assert found.bottleneck == "CPU-bound"
    assert "got 0.2 CPUs' worth while 9.0 threads" in found.sentence
    # Alone the step would take a quarter of its time: what a GPU gains is counted from there.
    assert gains(found)["gpu"] == pytest.approx((12.5 / 4, 25.0 / 4))
    assert "share" not in gains(diagnose(tiny(), CPU, parse_telemetry([host(run=1.0, load=1.0)])))
    shared = parse_telemetry([gpu_host(others=3)])
    assert gains(diagnose(tiny(device="cuda"), GPU, shared))["share"] is None


def test_without_figures_nothing_is_claimed() -> None:
    empty = DeviceView("cpu", "a CPU")
    assert diagnose(Profile(), empty, HostUse()).bottleneck == "unknown"
    assert "off: no optimizer" in diagnose(Profile(off="no optimizer"), empty, HostUse()).sentence
    timed = diagnose(Profile(step_seconds=0.05), empty, HostUse())
    assert timed.bottleneck == "unknown"
    assert (timed.tries, timed.floors, timed.mfu) == ((), (), None)
    assert "no floor of it is known" in timed.sentence
    assert (
        diagnose(Profile(step_seconds=0.05), replace(empty, kind="cuda"), HostUse()).bottleneck == "unknown"
    )


POSITIVE = st.none() | st.floats(1e-300, 1e30)
SHARES = st.lists(st.floats(0, 1), min_size=7, max_size=7).filter(lambda parts: sum(parts) > 0)
PHASES = ("data", "eval", "save", "forward", "backward", "optimizer", "other")


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    parts = draw(SHARES)
    return Profile(
        settings=Settings(
            threads=draw(st.none() | st.integers(1, 1024)),
            compiled=draw(st.none() | st.booleans()),
            optimizer=draw(st.sampled_from(["AdamW", "SGD", "Lion", None])),
            fused=draw(st.none() | st.booleans()),
            workers=draw(st.none() | st.integers(0, 64)),
            amp=draw(st.sampled_from([None, "bfloat16"])),
        ),
        flops=draw(POSITIVE),
        kernels=draw(POSITIVE),
        bytes=draw(POSITIVE),
        trainable=draw(st.none() | st.integers(0, 2**62)),
        dtype=draw(st.sampled_from([None, "float32", "tf32", "bfloat16", "odd"])),
        step_seconds=draw(st.floats(1e-9, 1e9)),
        shapes=draw(st.none() | st.integers(0, 9)),
        shares={key: part / sum(parts) for key, part in zip(PHASES, parts, strict=True)},
        split=draw(st.booleans()),
        starved=draw(st.none() | st.floats(0, 1)),
    )


@st.composite
def views(draw: st.DrawFn) -> DeviceView:
    return DeviceView(
        draw(st.sampled_from(["cpu", "cuda"])),
        "a device",
        processes=draw(st.integers(1, 64)),
        peak=draw(POSITIVE),
        peaks={key: value for key in ("bf16", "tf32", "fp16", "fp32") if (value := draw(POSITIVE))},
        bandwidth=draw(POSITIVE),
        dispatch=draw(POSITIVE),
        threads=draw(st.none() | st.integers(1, 1024)),
        cores=draw(st.none() | st.integers(1, 1024)),
        capability=draw(st.sampled_from([None, (7, 5), (9, 0)])),
    )


@given(
    profiles(),
    views(),
    st.sampled_from([HostUse(), parse_telemetry([gpu_host(others=1, throttle=["thermal"])])]),
)
def test_no_gain_is_a_loss_or_endless(profile: Profile, device: DeviceView, use: HostUse) -> None:
    found = diagnose(profile, device, use)
    assert found.sentence.endswith(".")
    for item in found.tries:
        assert item.basis
        least = COMPILED_LOSS if item.id == "compile" else 1.0  # the one that is known to lose on some CPUs
        assert item.gain is None or least <= item.gain[0] <= item.gain[1] <= 1000.0
        render_gain(item.gain)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5, "2.50 s"), (0.0614, "61.4 ms"), (0.00082, "820 us"), (1e-7, "100 ns"), (125.0, "125 s")],
)
def test_times_in_words(seconds: float, text: str) -> None:
    assert render_time(seconds) == text


def test_shares_rates_and_gains_in_words() -> None:
    assert [render_share(share) for share in (0.0, 0.0005, 0.024, 0.384)] == [
        "0.0 %",
        "under 0.1 %",
        "2.4 %",
        "38 %",
    ]
    assert [render_rate(rate) for rate in (80.2e12, 0.56e12)] == ["80.2 TFLOP/s", "560 GFLOP/s"]
    assert [render_gain(gain) for gain in ((1.0, 1.8), (1.5, 1.5), (1.2, 30.0), None)] == [
        "1.00 to 1.80 x",
        "1.50 x",
        "1.20 to 30 x",
        "not predicted",
    ]
