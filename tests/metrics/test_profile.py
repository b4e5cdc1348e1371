"""Lines of the meter and of telemetry summed up: figures by hand, and whatever a stranger may have written."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.metrics.profile import Profile, parse_profile
from remote_train.metrics.telemetry import HostUse, parse_telemetry
from tests.metrics.meter_lines import count, gpu_host, host, line, sample, start, window


def test_a_training_in_figures() -> None:
    # The first window is ten times as slow and does not count. Then 10 s: 1 s of evaluation, 0.5 of saving, 0.5 of data.
    windows = [window(10.0), *[window(0.9)] * 5, window(5.5, eval=1.0, save=0.5, data=0.5, median=0.05)]
    profile = parse_profile([start(), count(), *windows, sample(), sample()])
    assert profile.step_seconds == pytest.approx(0.045)
    assert profile.seconds == pytest.approx(10.0)
    assert profile.steps == 7 * 20
    # 8 s are left for the phases, which the samples split 30, 50, 16 and 4 per cent.
    assert profile.shares == pytest.approx(
        {
            "eval": 0.1,
            "save": 0.05,
            "data": 0.05,
            "forward": 0.24,
            "backward": 0.4,
            "optimizer": 0.128,
            "other": 0.032,
        }
    )
    assert sum(profile.shares.values()) == pytest.approx(1.0)
    assert profile.tokens_per_second == pytest.approx(768 / 0.045)
    assert profile.flops_per_second == pytest.approx(4e9 / 0.045)
    assert (profile.settings.optimizer, profile.settings.threads, profile.starved) == ("AdamW", 1, None)


def test_one_window_counts_where_it_is_the_only_one() -> None:
    profile = parse_profile([start(), window(2.0)])
    assert profile.step_seconds == 0.1
    assert profile.shares == {"data": 0.0, "eval": 0.0, "save": 0.0, "other": 1.0}
    assert not profile.split


def test_after_a_restart_the_newest_process_counts() -> None:
    profile = parse_profile([start(pid=1), window(9.0), window(9.0), start(pid=2), window(1.0), window(1.0)])
    assert profile.step_seconds == 0.05
    changed = parse_profile(
        [start(pid=1), window(9.0), window(9.0), start(pid=1, compiled=True), window(9.0)]
    )
    assert (changed.steps, changed.settings.compiled) == (60, True)


def test_settings_and_counts_are_those_said_last() -> None:
    profile = parse_profile([start(), count(flops=1e9), count(flops=None, why="a custom kernel"), window()])
    assert (profile.flops, profile.why, profile.flops_per_second) == (None, "a custom kernel", None)


def test_a_step_time_that_grows_is_a_trend() -> None:
    windows = [window(1.0)] + [window(seconds) for seconds in (1, 1, 1, 1.5, 1.5, 1.5, 2, 2, 2)]
    assert parse_profile(windows).trend == 2.0
    assert parse_profile(windows[:8]).trend is None


def test_the_gpu_that_waited_is_a_share_of_the_samples() -> None:
    assert (
        parse_profile([sample(starved=True), sample(starved=True), sample(starved=False), sample()]).starved
        == 2 / 3
    )


def test_nothing_is_an_empty_profile() -> None:
    assert parse_profile([]) == Profile()
    assert parse_profile([line("off", why="no optimizer")]).off == "no optimizer"


def test_a_host_in_medians() -> None:
    use = parse_telemetry([host(busy=0.1), host(busy=0.9, throttled=True), host(busy=0.8, mhz=None)])
    assert (use.samples, use.busy, use.run, use.mhz, use.throttled) == (3, 0.8, 1.0, 3000.0, 1 / 3)
    assert (use.memory_used, use.memory_total, use.memory_run) == (2e9, 8e9, 1e9)
    assert parse_telemetry([]) == HostUse()


def test_gpus_in_medians_and_reasons_in_shares() -> None:
    lines = [
        gpu_host(throttle=["power"]),
        gpu_host(throttle=["power", "thermal"], others=2),
        gpu_host(watts=250.0),
    ]
    (gpu,) = parse_telemetry(lines).gpus
    assert (gpu.watts, gpu.utilization, gpu.others, gpu.index) == (200.0, 0.9, 2, 0)
    assert gpu.throttle == {"power": 2 / 3, "thermal": 1 / 3}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = (
    "flops",
    "kernels",
    "bytes",
    "steps",
    "seconds",
    "median",
    "eval",
    "data",
    "settings",
    "cpu",
    "gpus",
    "forward",
)
ROWS = st.fixed_dictionaries(
    {"kind": st.sampled_from(["start", "count", "steps", "sample", "off", "odd"])},
    optional=dict.fromkeys(
        (*KEYS, "pid", "device", "starved", "optimizer", "threads", "dtype", "why"), VALUES
    ),
)


def test_more_than_any_step_has_is_unknown() -> None:
    profile = parse_profile([start(), count(flops=1e29, kernels=1e13, bytes=1e21, tokens=1e19), window()])
    assert (profile.flops, profile.kernels, profile.bytes, profile.tokens) == (None,) * 4


@given(st.lists(ROWS | VALUES, max_size=8))
def test_no_line_breaks_a_sum(rows: list[Any]) -> None:
    lines = [json.dumps(row).encode() for row in rows]
    profile = parse_profile(lines)
    assert all(0 <= share <= 1.0 + 1e-9 for share in profile.shares.values())
    assert profile.step_seconds is None or (profile.step_seconds > 0 and math.isfinite(profile.step_seconds))
    parse_telemetry(lines)


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"kind":"steps"}',
        b'{"kind":"steps","steps":-1,"seconds":1}',
    ],
)
def test_junk_is_left_out(junk: bytes) -> None:
    assert parse_profile([junk, window()]).step_seconds == 0.05
    assert parse_telemetry([junk, host()]).samples == 1
