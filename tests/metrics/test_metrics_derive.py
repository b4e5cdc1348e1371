"""The Deriver: logs in the real formats to records, the same in any chunking, with nothing unknown made up."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_train.metrics.derive import Context, Deriver
from remote_train.metrics.peaks import DeviceFacts, Peak, choose_peak
from remote_train.metrics.record import MetricRecord

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = Path(__file__).parent / "data"
LOGS = sorted(path.name for path in DATA.glob("*.txt"))
CARD = DeviceFacts("cuda", "NVIDIA GeForce RTX 4070 Ti", 60, 2610, (8, 9))
LAPTOP = DeviceFacts("cpu", "12th Gen Intel(R) Core(TM) i7-12700H")


def context(
    device: DeviceFacts, *, devices: int = 1, time_at: Callable[[int], float | None] | None = None
) -> Context:
    def peak_for(dtype: str) -> Peak | None:
        return choose_peak(device, dtype, measured={"float32": 0.56e12} if device.kind == "cpu" else None)

    return Context(
        attempt=1,
        devices=devices,
        peak_for=peak_for,
        default_dtype="bfloat16",
        default_dtype_source="assumed",
        wall_start=1_000.0,
        time_at=time_at,
        device_kind=device.kind,
        capability=device.capability,
    )


def derive(
    data: bytes, given_context: Context, cuts: list[int] | None = None
) -> tuple[list[MetricRecord], Deriver]:
    deriver = Deriver(given_context)
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts or [])})
    records = [r for a, b in itertools.pairwise(places) for r in deriver.feed(data[a:b], 1_060.0)]
    return records + deriver.finish(1_060.0), deriver


def read(name: str) -> bytes:
    return (DATA / name).read_bytes()


def steps(records: list[MetricRecord]) -> dict[int | None, MetricRecord]:
    return {record.step: record for record in records}


@pytest.mark.parametrize("name", LOGS)
def test_byte_by_byte_gives_the_same_records(name: str) -> None:
    data = read(name)
    whole, deriver = derive(data, context(CARD))
    assert whole
    single, other = derive(data, context(CARD), list(range(len(data))))
    assert single == whole
    assert (other.progress, other.evaluation, other.explanation) == (
        deriver.progress,
        deriver.evaluation,
        deriver.explanation,
    )


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(LOGS), st.lists(st.integers(0, 1 << 16), max_size=20))
def test_random_chunks_give_the_same_records(name: str, cuts: list[int]) -> None:
    assert derive(read(name), context(CARD), cuts)[0] == derive(read(name), context(CARD))[0]


@pytest.mark.parametrize("name", LOGS)
def test_between_bytes_of_chatter_the_records_are_the_same(name: str) -> None:
    noise = b"".join(b"worker %d: 0.1 s\n" % n for n in range(2000))
    assert (
        derive(noise + read(name) + noise, context(CARD))[0] == derive(read(name) + b"\n", context(CARD))[0]
    )


def test_the_seed_run_on_a_laptops_cpu() -> None:
    records, deriver = derive(read("nanogpt_cpu.txt"), context(LAPTOP))
    at_five = steps(records)[5]
    assert at_five.step_seconds == pytest.approx(0.12723)
    assert at_five.tokens_per_second == pytest.approx(768 / 0.12723)
    assert at_five.flops_per_second == pytest.approx(31.2e9, rel=0.001)
    assert at_five.mfu == pytest.approx(0.056, rel=0.01)
    assert at_five.reported_mfu == pytest.approx(0.0001)
    assert (at_five.dtype, at_five.peak_flops) == ("float32", 0.56e12)
    assert at_five.peak_source == "measured: matmul, float32"
    assert deriver.progress == (8, 2000)
    assert deriver.evaluation == (7, 3.9903)
    assert deriver.explanation == (
        "nanoGPT prints 0.01 %: that is of an A100's 312 TFLOP/s; of this 12th Gen Intel(R) Core(TM) i7-12700H's 0.56 TFLOP/s it is 5.6 %"
    )


def test_evaluation_and_checkpoint_time_is_no_step_time() -> None:
    records = steps(derive(read("nanogpt_cpu.txt"), context(LAPTOP))[0])
    for polluted in (0, 7):
        assert (
            records[polluted].step_seconds,
            records[polluted].mfu,
            records[polluted].flops_per_second,
        ) == (None, None, None)
        assert records[polluted].loss is not None
    assert records[8].step_seconds == pytest.approx(0.12688)


def test_a_loss_of_nan_leaves_the_rest_of_the_record() -> None:
    record = steps(derive(read("nanogpt_cpu.txt"), context(LAPTOP))[0])[6]
    assert record.loss is None
    assert record.mfu is not None


def test_the_seed_run_on_the_4070_ti() -> None:
    records, deriver = derive(read("nanogpt_gpu.txt"), context(CARD))
    record = steps(records)[30]
    assert record.flops_per_second == pytest.approx(31.2e12, rel=0.001)
    assert record.mfu == pytest.approx(0.389, rel=0.002)
    assert record.dtype == "bfloat16"
    assert record.peak_flops == pytest.approx(80.2e12, rel=0.001)
    assert (
        deriver.explanation
        == "nanoGPT prints 10.0 %: that is of an A100's 312 TFLOP/s; of this RTX 4070 Ti's 80.2 TFLOP/s it is 38.9 %"
    )
    assert deriver.progress == (30, 5000)


def test_two_gpus_share_the_run_and_its_mfu_is_of_both() -> None:
    log = read("nanogpt_gpu.txt").replace(b"mfu 10.00%", b"mfu 5.00%")  # per process: half of the tokens each
    records, deriver = derive(log, context(CARD, devices=2))
    record = records[-1]
    assert record.flops_per_second == pytest.approx(31.2e12, rel=0.001)
    assert record.mfu == pytest.approx(0.389 / 2, rel=0.002)
    assert record.peak_flops == pytest.approx(160.4e12, rel=0.001)
    assert "does not agree" not in (deriver.explanation or "")


def test_without_start_lines_the_printed_figure_is_an_interval() -> None:
    records, deriver = derive(b"iter 10: loss 3.9, time 127.00ms, mfu 0.01%\n", context(CARD))
    assert (records[0].flops_per_second, records[0].mfu) == (None, None)
    assert deriver.interval == pytest.approx((15.6e9, 46.8e9))
    assert deriver.explanation == (
        "nanoGPT prints 0.01 %: that is of an A100's 312 TFLOP/s; of this RTX 4070 Ti's 80.2 TFLOP/s it is 0.019 % to 0.058 %"
    )


def test_a_script_told_to_use_the_cpu_is_not_measured_against_the_gpu() -> None:
    record = derive(read("nanogpt_cpu.txt"), context(CARD))[0][-1]
    assert record.flops_per_second == pytest.approx(31.2e9, rel=0.01)
    assert (record.mfu, record.peak_flops, record.dtype) == (None, None, "float32")


def test_nanochat() -> None:
    records, deriver = derive(read("nanochat.txt"), context(CARD))
    assert [(r.step, r.loss, r.reported_mfu) for r in records] == [
        (4, 8.893647, pytest.approx(0.7413)),
        (5, 8.411002, pytest.approx(0.4822)),
        (6, None, None),
    ]
    assert records[0].flops_per_second == pytest.approx(529_882 * 7.485e8)
    assert records[0].source == "log:nanochat"
    assert deriver.progress is None  # the last line has no total
    assert deriver.explanation is None


def test_transformers_takes_its_steps_from_the_bar_drawn_behind_the_dict() -> None:
    records, deriver = derive(read("transformers.txt"), context(CARD))
    assert [(r.step, r.loss, r.source) for r in records] == [
        (10, 2.3456, "log:transformers"),
        (20, None, "log:transformers"),
        (30, 2.102, "log:transformers"),
    ]
    assert deriver.progress == (30, 100)
    assert deriver.evaluation == (None, 2.2101)
    assert all(r.flops_per_second is None and r.mfu is None for r in records)


def test_transformers_without_a_bar_has_no_step() -> None:
    log = b"{'loss': 2.5, 'epoch': 0.1}\n{'loss': 2.4, 'epoch': 0.2}\n"
    assert [(r.step, r.loss) for r in derive(log, context(CARD))[0]] == [(None, 2.5), (None, 2.4)]


def test_an_evaluations_bar_is_not_the_trainings() -> None:
    log = b"\r 10%|# | 10/100 [0\r{'loss': 2.5}\n\r 10%|# | 10/100 [0\r  0%| | 0/13 [0\r{'loss': 2.4}\n\r 99%|# | 13/13 [0\r"
    assert [(r.step, r.loss) for r in derive(log, context(CARD))[0]] == [(10, 2.5), (None, 2.4)]


def test_the_generic_lines() -> None:
    records, _ = derive(read("generic.txt"), context(CARD))
    assert [(r.step, r.loss) for r in records] == [(1, 9.512345), (2, None), (3, 1.2345)]
    assert records[0].flops_per_second == pytest.approx(1375213.11 * 5168640)
    assert records[0].mfu == pytest.approx(1375213.11 * 5168640 / 80.2e12, rel=0.001)
    assert (records[0].dtype, records[0].dtype_source) == ("bfloat16", "assumed")


def test_only_the_first_rank_that_reports_makes_records() -> None:
    log = b"".join(b"[default%d]:step %d loss 2.5\n" % (n % 2, n) for n in range(6)) + b"step 6 loss 2.5\n"
    assert [r.step for r in derive(log, context(CARD))[0]] == [0, 2, 4, 6]


def test_times_come_from_the_hosts_clock_and_else_from_receipt() -> None:
    log = b"step 1 loss 2.5\nstep 2 loss 2.5\n"
    ends = {16: 7.5}
    first, second = derive(log, context(CARD, time_at=ends.get))[0]
    assert (first.time, first.wall_time) == (7.5, 1_007.5)
    assert (second.time, second.wall_time) == (60.0, 1_060.0)


def test_without_any_clock_times_are_unknown() -> None:
    bare = Context(attempt=1, devices=1, peak_for=lambda _: None)
    deriver = Deriver(bare)
    (record,) = deriver.feed(b"step 1 loss 2.5\n", None)
    assert (record.time, record.wall_time, record.mfu, record.dtype, record.peak_flops) == (
        None,
        None,
        None,
        None,
        None,
    )


def test_launch_times_are_replaced_by_the_hosts_pace() -> None:
    head = read("nanogpt_gpu.txt").partition(b"step 0")[0]
    log = head + b"".join(b"iter %d: loss 1.0000, time 9.00ms, mfu 41.40%%\n" % (10 * n) for n in range(1, 9))
    line = {end: float(n) for n, end in enumerate(i + 1 for i, byte in enumerate(log) if byte == 10)}
    record = derive(log, context(CARD, time_at=line.get))[0][-1]
    assert record.step_seconds == pytest.approx(0.1)
    assert record.mfu == pytest.approx(1.1626e13 / 80.2e12, rel=0.001)


def test_eta_follows_the_pace_of_the_records() -> None:
    log = b"".join(b"step %d/100 | loss 2.5 | dt: 1ms\n" % n for n in range(1, 11))
    ends = {end: 2.0 * n for n, end in enumerate(i + 1 for i, byte in enumerate(log) if byte == 10)}
    _, clocked = derive(log, context(CARD, time_at=ends.get))
    assert clocked.eta_seconds == pytest.approx(90 * 2.0)
    _, printed = derive(log, Context(attempt=1, devices=1, peak_for=lambda _: None))
    assert printed.eta_seconds == pytest.approx(90 * 0.001)
    assert Deriver(context(CARD)).eta_seconds is None


def test_a_restart_in_the_same_output_reads_the_new_start_lines() -> None:
    log = read("nanogpt_cpu.txt") + read("nanogpt_gpu.txt").replace(
        b"Overriding config", b"Overriding config", 1
    )
    records, deriver = derive(log, context(CARD))
    assert records[-1].mfu == pytest.approx(0.389, rel=0.002)
    assert deriver.progress == (30, 5000)


def test_records_in_json_hold_every_field_and_no_number_that_json_lacks() -> None:
    record = MetricRecord(attempt=1, step=3, loss=float("nan"), mfu=float("inf"), time=1.5)
    plain = record.as_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert list(plain) == [field.name for field in dataclasses.fields(MetricRecord)]
    assert (plain["loss"], plain["mfu"], plain["time"]) == (None, None, 1.5)


@given(
    st.lists(
        st.sampled_from([*b"\n\r %|", *range(97, 123)]).map(lambda byte: bytes([byte]))
        | st.sampled_from(
            [
                b"iter 1: loss 1.5, time 2.00ms\n",
                b"Overriding: n_layer = 4\n",
                b"{'loss': 1.5}\n",
                b" 1%|#| 1/9 [\r",
            ]
        )
    )
)
def test_any_bytes_are_taken_without_an_error_and_unknown_is_none(pieces: list[bytes]) -> None:
    for record in derive(b"".join(pieces), context(CARD))[0]:
        assert record.mfu is None or 0 < record.mfu < float("inf")
        json.dumps(record.as_json(), allow_nan=False)
