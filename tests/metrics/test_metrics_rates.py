"""Rates of the whole run: devices, the pace by the host's clock, and the check against nanoGPT's printed MFU."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.metrics.nanogpt import A100_FLOPS, StartLines
from remote_train.metrics.rates import NanogptRates, Pace, PlainRates, PrintedMfu
from remote_train.metrics.reading import Reading

FLOPS = 5_168_640 * 768


def iteration(step: int, seconds: float, mfu: float | None = None) -> Reading:
    return Reading("nanogpt", "step", step=step, loss=1.0, step_seconds=seconds, mfu=mfu, per="device")


def start_lines(*, odd: bool = False, tokens: int = 768) -> StartLines:
    start = StartLines()
    for line in (
        "Overriding: n_layer = 4",
        "Overriding: n_embd = 128",
        "Overriding: block_size = 64",
        f"tokens per iteration will be: {tokens}",
        f"num decayed parameter tensors: {19 if odd else 18}, with 802,944 parameters",
        "num non-decayed parameter tensors: 9, with 1,152 parameters",
    ):
        start.see(line)
    return start


def test_plain_rates_per_device_become_those_of_the_run() -> None:
    plain = PlainRates()
    plain.see_start(Reading("generic", "start", flops_per_token=10.0))
    whole = plain.derive(Reading("x", "step", tokens_per_second=100.0), 4)
    each = plain.derive(Reading("x", "step", tokens_per_second=100.0, per="device"), 4)
    assert (whole.tokens_per_second, whole.flops_per_second) == (100.0, 1000.0)
    assert (each.tokens_per_second, each.flops_per_second) == (400.0, 4000.0)


def test_plain_tokens_come_from_tokens_per_step_and_stay_unknown_without() -> None:
    plain = PlainRates()
    plain.see_start(Reading("generic", "start", flops_per_token=10.0))
    assert plain.derive(Reading("x", "step", step_seconds=0.5), 1).flops_per_second is None
    plain.see_start(Reading("generic", "start", tokens_per_step=50.0))
    rates = plain.derive(Reading("x", "step", step_seconds=0.5), 1)
    assert (rates.step_seconds, rates.tokens_per_second, rates.flops_per_second) == (0.5, 100.0, 1000.0)


def test_nanogpt_rates_are_of_the_whole_run_whatever_the_devices() -> None:
    rates = NanogptRates(start_lines()).derive(iteration(10, 0.01), None, 4)
    assert (rates.tokens_per_second, rates.flops_per_second) == (76800.0, FLOPS / 0.01)


def test_the_iteration_behind_an_evaluation_has_no_step_time() -> None:
    nanogpt = NanogptRates(start_lines())
    nanogpt.see_evaluation(10)
    assert nanogpt.derive(iteration(10, 5.2), None, 1).step_seconds is None
    assert nanogpt.derive(iteration(11, 0.1), None, 1).step_seconds == 0.1


def test_a_logged_iteration_after_an_unlogged_evaluation_counts() -> None:
    nanogpt = NanogptRates(start_lines())
    nanogpt.see_evaluation(100)  # log_interval 30: iteration 100 itself is not printed
    assert nanogpt.derive(iteration(120, 0.1), None, 1).step_seconds == 0.1


def paced(step: int, time: float | None, printed: float, pace: Pace) -> float | None:
    return pace.measure(iteration(step, printed), time, polluted=False)


def test_launch_times_give_way_to_the_hosts_clock() -> None:
    pace = Pace()
    found = [paced(10 * n, n * 1.0, 0.01, pace) for n in range(8)]
    assert found[:5] == [None] * 5  # under 5 s the clock's marks are too coarse
    assert found[5:] == [pytest.approx(0.1)] * 3


def test_printed_times_stand_when_the_clock_agrees() -> None:
    pace = Pace()
    assert [paced(10 * n, n * 1.0, 0.09, pace) for n in range(9)] == [None] * 9


def test_with_every_iteration_printed_the_printed_times_stand() -> None:
    pace = Pace()
    assert [paced(n, n * 1.0, 0.01, pace) for n in range(9)] == [None] * 9


def test_the_pace_begins_anew_behind_an_evaluation_and_a_restart() -> None:
    for end in ("evaluation", "restart"):
        pace = Pace()
        for n in range(5):
            paced(10 * n, n * 1.0, 0.01, pace)
        if end == "evaluation":
            pace.clear()
            assert paced(50, 60.0, 0.01, pace) is None
        else:
            assert paced(10, 60.0, 0.01, pace) is None


def test_without_a_clock_there_is_no_pace() -> None:
    pace = Pace()
    assert [paced(10 * n, None, 0.01, pace) for n in range(9)] == [None] * 9


@given(
    st.lists(st.floats(0.001, 10), min_size=1, max_size=60),
    st.floats(1e6, 1e14),
)
def test_nanogpts_own_running_mean_never_contradicts_the_right_flops(
    times: list[float], flops: float
) -> None:
    printed, running = PrintedMfu(), -1.0
    for n, seconds in enumerate(times):
        now = flops / seconds / A100_FLOPS
        running = now if running == -1.0 else 0.9 * running + 0.1 * now
        shown = iteration(n, float(f"{seconds * 1000:.2f}") / 1000, float(f"{running * 100:.2f}") / 100)
        printed.see(shown, flops)
        assert not printed.contradicts


def test_five_lines_in_a_row_contradict_and_one_that_agrees_forgives() -> None:
    printed, seconds = PrintedMfu(), FLOPS / A100_FLOPS / 0.1
    for n in range(5):
        assert not printed.contradicts
        printed.see(iteration(n, seconds, 0.2), FLOPS)
    assert printed.contradicts
    printed.see(iteration(6, seconds, 0.1), FLOPS)
    assert not printed.contradicts


def contradicted(start: StartLines, mfu: float, devices: int = 1) -> float | None:
    nanogpt, rates = NanogptRates(start), None
    for n in range(6):
        rates = nanogpt.derive(iteration(n, 0.001, mfu), None, devices)
    assert nanogpt.printed.contradicts
    return rates.flops_per_second if rates else None


def test_a_contradicted_figure_stands_when_the_tensor_lines_verify_it() -> None:
    assert contradicted(start_lines(), 0.5) == pytest.approx(FLOPS / 0.001)


def test_a_contradicted_guess_gives_way_to_the_printed_figure() -> None:
    assert contradicted(start_lines(odd=True), 0.5) == pytest.approx(0.5 * A100_FLOPS)
    assert contradicted(start_lines(odd=True), 0.5, devices=4) == pytest.approx(4 * 0.5 * A100_FLOPS)


def test_the_printed_figure_alone_is_an_interval_and_a_figure_when_it_is_fine_enough() -> None:
    nanogpt = NanogptRates(StartLines())
    fine = nanogpt.derive(iteration(10, 0.127, 0.1), None, 2)
    assert fine.flops_per_second == pytest.approx(2 * 31.2e12)
    coarse = nanogpt.derive(iteration(11, 0.127, 0.0001), None, 1)
    assert coarse.flops_per_second is None
    assert nanogpt.printed.interval(1) == pytest.approx((15.6e9, 46.8e9))
    nanogpt.derive(iteration(12, 0.127, 0.0), None, 1)
    assert nanogpt.printed.interval(1) == pytest.approx((0.0, 15.6e9))
    nanogpt.derive(iteration(13, 0.127, None), None, 1)
    assert nanogpt.printed.interval(1) is None
