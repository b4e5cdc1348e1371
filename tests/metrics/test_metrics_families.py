"""The log formats of other frameworks, from bytes to records: whose figures, of a device or the run, in any chunking."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_train.metrics.derive import Context, Deriver
from remote_train.metrics.lines import LINE_CAP
from remote_train.metrics.parsers import PARSERS, LogReader
from remote_train.metrics.peaks import Peak

if TYPE_CHECKING:
    from remote_train.metrics.record import MetricRecord

H100 = Peak(989e12, "table", "H100")
TITAN = "[rank0]:[titan] 2026-01-01 00:00:00,000 - root - INFO - "
MEGATRON = (
    " [2026-08-22 10:00:00.123456] iteration       10/     100 | consumed samples:         2560 | "
    "elapsed time per iteration (ms): 1234.5 |{rate} learning rate: 1.500000E-04 | global batch size:   256 | "
    "{loss} loss scale: 1.0 | grad norm: 1.234 | number of skipped iterations:   0 | number of nan iterations:   0 |"
)
TIMER = (
    "[2026-08-22 10:00:00,000] [INFO] [timer.py:264:stop] epoch=0/micro_step={0}/global_step={0}, "
    "RunningAvgSamplesPerSec=105.2, CurrSamplesPerSec=106.7, MemAllocated=1.2GB, MaxMemAllocated=3.4GB"
)
STEP = "[2026-08-22 10:00:00,000] [INFO] [logging.py:128:log_dist] [Rank 0] step={}, skipped=0, lr=[0.001], mom=[(0.9, 0.999)]"
DUMP = (
    "[2026-08-22 10:00:00,000] [INFO] [config.py:1003:print]   loss_scale ................... 0\n"
    "[2026-08-22 10:00:00,000] [INFO] [config.py:1003:print]   train_batch_size ............. 32"
)


def derive(text: str, devices: int = 4, piece: int = 1 << 20) -> list[MetricRecord]:
    deriver = Deriver(Context(1, devices, lambda _: H100, default_dtype="bfloat16"))
    data = text.encode() + b"\n"
    records = [
        record for at in range(0, len(data), piece) for record in deriver.feed(data[at : at + piece], None)
    ]
    return [*records, *deriver.finish()]


def facts(record: MetricRecord) -> dict[str, float]:
    names = ("step", "loss", "step_seconds", "tokens_per_second", "flops_per_second", "reported_mfu")
    return {name: getattr(record, name) for name in names if getattr(record, name) is not None}


CASES = [
    (
        "build-nanogpt",
        "step     1 | loss: 9.512345 | lr 1.0490e-05 | norm: 4.1234 | dt: 381.22ms | tok/sec: 1375213.11",
        {"step": 1, "loss": 9.512345, "step_seconds": 0.38122, "tokens_per_second": 1375213.11},
    ),
    (
        "llm.c",
        "step    1/3 | loss 11.032358 (+nanz)| norm 22.1414 (+nanz)| lr 8.57e-07 | 2498.84 ms | 40.2% bf16 MFU | 209813 tok/s",
        {
            "step": 1,
            "loss": 11.032358,
            "step_seconds": 2.49884,
            "tokens_per_second": 209813,
            "reported_mfu": 0.402,
        },
    ),
    (  # on a device that llm.c does not know
        "llm.c",
        "step    2/3 | loss nan (+nanz)| norm nan (+nanz)| lr 8.57e-07 | 2679.79 ms | -100.0% bf16 MFU | 195645 tok/s",
        {"step": 2, "step_seconds": 2.67979, "tokens_per_second": 195645},
    ),
    (
        "llm.c",
        "step    7/74 | train loss 4.367631 | norm 2.0101 | lr 1.00e-04 | 19.86 ms | 31.5% A100 fp16 MFU | 51562 tok/s",
        {
            "step": 7,
            "loss": 4.367631,
            "step_seconds": 0.01986,
            "tokens_per_second": 51562,
            "reported_mfu": 0.315,
        },
    ),
    (
        "llm.c",
        "step    1/10 | train loss 5.270009 | norm 30.0101 | lr 1.00e-04 | (1234.56 ms | 830 tok/s)",
        {"step": 1, "loss": 5.270009, "step_seconds": 1.23456, "tokens_per_second": 830},
    ),
    (
        "torchtitan",
        TITAN
        + "\x1b[38;2;180;60;0mstep: 20  \x1b[32mloss: 11.83506  \x1b[33mgrad_norm:  9.6669  \x1b[36mmemory: 48.87GiB(51.44%)  "
        "\x1b[34mtps: 4,376  \x1b[38;2;54;234;195mtflops: 253.41  \x1b[35mmfu: 25.62%\x1b[39m",
        {
            "step": 20,
            "loss": 11.83506,
            "tokens_per_second": 4 * 4376,
            "flops_per_second": 4 * 253.41e12,
            "reported_mfu": 0.2562,
        },
    ),
    (  # quantised: no MFU
        "torchtitan",
        TITAN
        + "step:  3  loss:  7.1000  grad_norm:  nan  memory: 48.87GiB(51.44%)  tps: 900  tflops: 1,253.41  mfu: N/A",
        {"step": 3, "loss": 7.1, "tokens_per_second": 3600, "flops_per_second": 4 * 1253.41e12},
    ),
    (
        "megatron",
        MEGATRON.format(rate=" throughput per GPU (TFLOP/s/GPU): 412.3 |", loss="lm loss: 9.123456E+00 |"),
        {"step": 10, "loss": 9.123456, "step_seconds": 1.2345, "flops_per_second": 4 * 412.3e12},
    ),
    ("megatron", "[default0]:" + MEGATRON.format(rate="", loss=""), {"step": 10, "step_seconds": 1.2345}),
    (  # a fork prints newest/mean, and the loss of something else
        "megatron",
        (
            "trainer.py:2560] : iteration 4408/ 5000 | consumed samples: 564224 | elapsed time per iteration (ms): 13100.0/13240.9 | "
            "throughput per GPU (TFLOP/s/GPU): 579.4/573.6 | global batch size: 128 | mse loss: 4.5E-03 | loss scale: 1.0 |"
        ),
        {"step": 4408, "loss": 4.5e-3, "step_seconds": 13.1, "flops_per_second": 4 * 579.4e12},
    ),
    (
        "picotron",
        (
            "[rank 0] Step: 12    | Loss: 8.1234 | Global batch size:   1.05M | Tokens/s: 412.00K | Tokens/s/GPU:  103.00K | "
            "Tokens:  12.58M/1.00B | MFU: 38.21% | Memory usage:  41.20GB"
        ),
        {
            "step": 12,
            "loss": 8.1234,
            "step_seconds": 1.05e6 / 412e3,
            "tokens_per_second": 412e3,
            "flops_per_second": 4 * 0.3821 * 989.5e12,
            "reported_mfu": 0.3821,
        },
    ),
    (
        "nanotron",
        (
            "08/22/2026 10:00:00 [INFO|DP=0|PP=0|TP=0|host]: iteration: 12 / 100 | consumed_tokens: 12.6M | "
            "time_per_iteration_ms: 1.23K | tokens_per_sec: 852K | tokens_per_sec_per_gpu: 213K | global_batch_size: 1.05M | "
            "lm_loss: 8.12 | lr: 0.0003 | model_tflops_per_gpu: 412 | eta: 0:01:02"
        ),
        {
            "step": 12,
            "loss": 8.12,
            "step_seconds": 1.23,
            "tokens_per_second": 852e3,
            "flops_per_second": 4 * 412e12,
        },
    ),
    (
        "accelerate",
        "Step 10/100, Loss: 1.2345 | Average steps/s: 2.10 | Average tokens/s: 8601.60 | Average TFLOPS: 412.30",
        {
            "step": 10,
            "loss": 1.2345,
            "step_seconds": 1 / 2.1,
            "tokens_per_second": 4 * 8601.6,
            "flops_per_second": 4 * 412.3e12,
        },
    ),
    (
        "torchtune",
        "Step 10 | loss:1.2345 lr:2e-05 tokens_per_second_per_gpu:1234.5",
        {"step": 10, "loss": 1.2345, "tokens_per_second": 4 * 1234.5},
    ),
    ("torchtune", "1|10|Loss: 1.2345:  10%|#         | 10/100 [00:01<00:09]", {"step": 10, "loss": 1.2345}),
    (
        "litgpt",
        "Measured TFLOPs: 239.79\nEpoch 1 | iter 8 step 2 | loss train: 1.660, val: n/a | iter time: 500.00 ms (step) remaining time: 0:01:02",
        {"step": 2, "loss": 1.66, "flops_per_second": 2 * 239.79e12},
    ),
    (  # one micro-batch a step
        "litgpt",
        "Epoch 1 | iter 8 step 8 | loss train: nan, val: 2.310 | iter time: 500.00 ms (step)",
        {"step": 8, "step_seconds": 0.5},
    ),
    ("deepspeed", f"{DUMP}\n{TIMER.format(20)}", {"step": 20, "step_seconds": 32 / 106.7}),
    ("deepspeed", f"{DUMP}\n{STEP.format(10)}", {"step": 10}),
]


@pytest.mark.parametrize(("family", "text", "expected"), CASES)
def test_lines_of_each_family(family: str, text: str, expected: dict[str, float]) -> None:
    [record] = derive(text)
    assert record.source == f"log:{family}"
    assert facts(record) == pytest.approx(expected)
    flops = expected.get("flops_per_second")
    assert record.mfu == (flops and pytest.approx(flops / (4 * 989e12)))
    assert derive(text, piece=7) == [record]


def test_a_prefix_of_torchrun_and_colours_change_nothing() -> None:
    for family, text, expected in CASES:
        if "\n" not in text and "[rank0]" not in text and "[default0]" not in text:
            [record] = derive(f"[default3]:\x1b[1m{text}\x1b[0m")
            assert record.source == f"log:{family}"
            assert facts(record) == pytest.approx(expected)


def test_rates_of_the_run_do_not_change_with_the_devices_and_those_of_a_device_do() -> None:
    whole = {"build-nanogpt", "llm.c", "litgpt", "deepspeed", "megatron"}
    for family, text, _ in CASES:
        [one], [eight] = derive(text, devices=1), derive(text, devices=8)
        if one.tokens_per_second and eight.tokens_per_second:
            times = 1 if family in whole else 8
            assert eight.tokens_per_second == pytest.approx(times * one.tokens_per_second)
        if one.flops_per_second and eight.flops_per_second:
            assert eight.mfu == pytest.approx((one.mfu or 0) / (8 if family == "litgpt" else 1))


def test_torchtitans_start_gives_the_step_and_what_an_older_mfu_is_of() -> None:
    start = (
        f"{TITAN}Peak FLOPS used for computing MFU: 9.890e+14\n{TITAN}Training starts at step 1, with local batch size 8, "
        "global batch size 64, gradient accumulation steps 1, sequence length 8192, total steps 1000 (warmup steps 200)\n"
    )
    line = f"{TITAN}step: 30  loss:  7.1  memory: 48.87GiB(51.44%)  wps: 4,376  mfu: 25.00%"
    [record] = derive(start + line)
    assert record.step_seconds == pytest.approx(64 * 8192 / (4 * 4376))
    assert record.mfu == pytest.approx(0.25)
    assert derive(line)[0].mfu is None  # of the device's peak or of an A100's: who knows


def test_megatrons_tokens_come_from_its_arguments() -> None:
    dump = "  loss_scale ...................................... None\n  seq_length ...................................... 4096\n"
    [record] = derive(dump + MEGATRON.format(rate="", loss="lm loss: nan |"))
    assert record.tokens_per_second == pytest.approx(256 * 4096 / 1.2345)


def test_modded_nanogpt_has_times_since_its_start_and_validation_losses() -> None:
    lines = [
        "step:0/1390 val_loss:10.8258 train_time:0ms step_avg:0.01ms",
        "step:1/1390 train_time:90ms step_avg:90.00ms",
        "step:3/1390 train_time:150ms step_avg:50.00ms",
        "step:4/1390 train_time:20ms step_avg:nanms",  # the timed part begins again
        "step:5/1390 train_loss:4.5 train_time:50ms step_avg:nanms",
        "step:5/1390 val_loss:3.2773 train_time:50ms step_avg:57.37ms",
    ]
    found = [(record.step, record.step_seconds, record.loss) for record in derive("\n".join(lines))]
    assert found == [
        (1, pytest.approx(0.09), None),
        (3, pytest.approx(0.03), None),
        (4, None, None),
        (5, pytest.approx(0.03), 4.5),
    ]


def test_the_time_that_holds_build_nanogpts_evaluation_is_no_step_time() -> None:
    line = "step     {} | loss: 9.5 | lr 1.0490e-05 | norm: 4.1 | dt: {}ms | tok/sec: 1000.0"
    records = derive("\n".join(["validation loss: 10.9521", line.format(0, "29000.10"), line.format(1, 381)]))
    assert [record.step_seconds for record in records] == [None, pytest.approx(0.381)]


COMPOSER = """\
[batch=1/5]:
\t Train loss/train/total: 9.1
\t Train throughput/batches_per_sec: 0.5
[batch=2/5]:
\t Train trainer/device_train_microbatch_size: 2
\t Train loss/train/total: 8.4213
\t Train throughput/batches_per_sec: 0.5
\t Train throughput/tokens_per_sec: 5020.7
\t Train throughput/device/tokens_per_sec: 1255.1776
\t Train throughput/device/flops_per_sec: 123000000000000.0000
\t Train throughput/device/mfu: 0.4321
\t Train image: <image at 0x711e4be2d700>
[Eval batch=1/10] Eval on eval data
[Eval batch=10/10] Eval on eval data:
\t Eval metrics/eval/LanguageCrossEntropy: 8.0
[epoch=2][batch=3/5]:
\t Train loss/train/total: nan
\t Train throughput/batches_per_sec: 0.0027
\t Train throughput/device/tokens_per_sec: 1000.0"""


def test_composers_step_is_put_together_from_its_lines() -> None:
    first, second = derive(COMPOSER)  # what came before the first line that tells composer is not known
    assert facts(first) == pytest.approx(
        {
            "step": 2,
            "loss": 8.4213,
            "step_seconds": 2.0,
            "tokens_per_second": 4 * 1255.1776,
            "flops_per_second": 4 * 123e12,
            "reported_mfu": 0.4321,
        }
    )
    assert facts(second) == {
        "step": 8,
        "tokens_per_second": 4000.0,
    }  # 0.0027 a second is too coarse for a time
    assert derive(COMPOSER, piece=5) == [first, second]


def test_composers_evaluation_ends_the_block() -> None:
    deriver = Deriver(Context(1, 1, lambda _: None))
    records = deriver.feed(COMPOSER.partition("[epoch=2]")[0].encode(), None)
    assert [record.step for record in records] == [2]
    assert deriver.evaluation == (None, 8.0)


@pytest.mark.parametrize(
    ("text", "step", "loss"),
    [
        (f"{TITAN}validate step: 40  loss:  6.9  memory:  4.87GiB(5.13%)  tps: 4,376", 40, 6.9),
        (
            " validation loss at iteration 1000 | lm loss value: 2.5E+00 | lm loss PPL: 1.2E+01 | ",
            1000,
            2.5,
        ),
        ("iter 100: val loss 2.1234, val time: 123.45 ms", None, 2.1234),
        ("val loss 11.033154", None, 11.033154),
    ],
)
def test_evaluations_are_no_steps(text: str, step: int | None, loss: float) -> None:
    deriver = Deriver(Context(1, 1, lambda _: None))
    assert deriver.feed(f"{text}\n".encode(), None) == []
    assert deriver.evaluation == (step, loss)


def test_deepspeeds_lines_give_way_to_whoever_prints_a_loss() -> None:
    hf = "{'loss': 2.3, 'grad_norm': 1.0, 'epoch': 1.0}"
    for line, family in ((hf, "transformers"), ("step 30 loss 2.5", "generic")):
        records = derive(f"{DUMP}\n{TIMER.format(20)}\n{line}\n{TIMER.format(30)}\n{STEP.format(40)}\n{line}")
        assert [record.source for record in records] == ["log:deepspeed", f"log:{family}", f"log:{family}"]


def test_a_line_that_tells_less_counts_only_until_a_better_one() -> None:
    bar = "1|{}|Loss: 1.5:  10%|#         | {}/100"
    drawn = [bar.format(1, 1), bar.format(1, 1), bar.format(2, 2)]
    assert [record.step for record in derive("\r".join(drawn))] == [1, 2]
    log = "Step 2 | loss:1.5 lr:2e-05 tokens_per_second_per_gpu:1234.5"
    assert [record.step for record in derive("\r".join([*drawn, log, bar.format(3, 3)]))] == [1, 2, 2]
    assert [
        record.step
        for record in derive("\n".join([DUMP, STEP.format(10), TIMER.format(10), STEP.format(20)]))
    ] == [10, 10]


def test_a_known_family_is_not_left_for_another() -> None:
    for family, text, _ in CASES:
        for other, line, _ in CASES:
            if family not in (other, "deepspeed"):
                records = derive(f"{text}\n{line}")
                assert {record.source for record in records} == {f"log:{family}"}, (family, other)


@pytest.mark.parametrize(
    "text",
    [
        "[seed=5/10]:",
        "[batch=3] loss 2.5",
        "step: 3  loss: 2.5  tps: 12",
        "Step 10 | loss:1.2",
        "iteration 10/ 100 | elapsed time per iteration (ms): nan |",
        "Step 10/100, Loss: 1.2345",
        "  seq_length: 4096",
    ],
)
def test_lines_that_only_resemble_a_family(text: str) -> None:
    reading = LogReader().read(text)
    assert reading is None or reading.family == "generic"


WORDS = sorted({word for _, text, _ in CASES for word in text.replace("|", " | ").split(" ")})


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from([*WORDS, "\n", "\r", "[batch=1/2]:", "\t Train loss/train/total: 1"]), max_size=60
    )
)
def test_lines_made_of_the_families_words_are_read_in_any_chunking(words: list[str]) -> None:
    text = " ".join(words)
    assert derive(text) == derive(text, piece=11)


REPEATED = [
    "step: 1", "step: 1 loss: 1 ", "step:", " ", "1", "1,111", ",", "loss ", "|", ": ", "iteration ", "iteration 1/ ",
    "[rank 0] Step: 1 | Loss: 1 | ", "loss_scale .....", "global_step=1, RunningAvgSamplesPerSec=1", "Epoch 1 | iter 1 step 1 | ",
    "train_time:", "{'loss': ", "a", "(", "dt: ", "tok/sec: ", "\t Train ", "validate ",
]  # fmt: skip
GATES = sorted({parser.gate for parser in PARSERS})


@pytest.mark.parametrize("piece", REPEATED)
def test_the_longest_lines_of_repeated_pieces_are_read_at_once(piece: str) -> None:
    """A pattern that tries everything twice would take hours here: 16 kB, behind the gate of every parser."""
    for gate in GATES:
        text = (gate + piece * LINE_CAP)[:LINE_CAP]
        reading = LogReader().read(text)
        assert reading is None or reading.loss is None or abs(reading.loss) < float("inf")
