"""The parsers: real lines of each format, the traps of each, and lines that say nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.metrics.generic import parse_generic_start, parse_generic_step
from remote_train.metrics.parsers import NEEDLES, PARSERS, LogReader
from remote_train.metrics.parsers_gpt import parse_nanochat, parse_nanogpt_eval, parse_nanogpt_iter
from remote_train.metrics.parsers_tuning import parse_bar, parse_transformers
from remote_train.metrics.reading import Reading, parse_count, parse_number, parse_positive

LINES = [
    ("nanogpt", "iter 10: loss 3.1461, time 37.26ms, mfu 10.00%"),
    ("nanogpt", "iter 23: loss 10.7863, time 305.73ms"),
    ("nanogpt", "step 2000: train loss 1.7640, val loss 1.8925"),
    (
        "nanochat",
        "step 00004/21400 (0.02%) | loss: 8.893647 | lrm: 1.00 | dt: 989.44ms | tok/sec: 529,882 | bf16_mfu: 74.13 | epoch: 1",
    ),
    ("transformers", "{'loss': 2.3456, 'grad_norm': 1.23, 'learning_rate': 4.5e-05, 'epoch': 0.12}"),
    ("bar", " 12%|█▏        | 12/100 [00:01<00:09,  9.96it/s]"),
    (
        "generic",
        "step    10 | loss: 9.512345 | lr 1.0490e-05 | grad: 4.1234 | dt: 381.22ms | 1375213.11 tok/sec",
    ),
]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("529,882", 529882.0),
        ("1,375,213.11", 1375213.11),
        ("12.6M", 12.6e6),
        ("852K", 852e3),
        ("1.05 B", 1.05e9),
        ("5.17e6", 5.17e6),
        ("nan", None),
        ("-inf", None),
        ("1e999", None),
        ("1,2", None),
        ("", None),
        ("12x", None),
    ],
)
def test_numbers_as_logs_write_them(text: str, value: float | None) -> None:
    assert parse_number(text) == pytest.approx(value) if value else parse_number(text) is None


def test_counts_and_positive_numbers() -> None:
    assert (parse_count("16,384"), parse_count("00012"), parse_count("1.5"), parse_count("9" * 19)) == (
        16384,
        12,
        None,
        None,
    )
    assert (parse_positive("0.00"), parse_positive("-1"), parse_positive(None)) == (None, None, None)


@pytest.mark.parametrize(("family", "text"), LINES)
def test_the_first_parser_that_fits_is_the_right_one(family: str, text: str) -> None:
    reading = LogReader().read(text)
    assert reading is not None
    assert reading.family == family
    assert any(needle in text.encode() for needle in NEEDLES)


def test_nanogpt_iter() -> None:
    assert parse_nanogpt_iter("iter 10: loss 3.1461, time 37.26ms, mfu 10.00%") == Reading(
        "nanogpt", "step", step=10, loss=3.1461, step_seconds=37.26 / 1e3, mfu=0.1, per="device"
    )


def test_nanogpt_minus_100_per_cent_is_not_yet() -> None:
    reading = parse_nanogpt_iter("iter 0: loss 4.1828, time 7961.94ms, mfu -100.00%")
    assert reading is not None
    assert reading.mfu is None


def test_nanogpt_of_2022_and_forks_with_more_fields() -> None:
    old = parse_nanogpt_iter("iter 23: loss 10.7863, time 305.73ms")
    fork = parse_nanogpt_iter("iter 23: loss 10.7863, time 305.73ms, mfu 1.50%, lr 1e-3")
    assert old is not None
    assert fork is not None
    assert (old.mfu, fork.mfu) == (None, 0.015)


@pytest.mark.parametrize("loss", ["nan", "inf", "-inf"])
def test_a_loss_that_is_no_number_is_unknown_and_the_step_still_counts(loss: str) -> None:
    reading = LogReader().read(f"iter 7: loss {loss}, time 37.26ms, mfu 9.00%")
    assert reading is not None
    assert (reading.step, reading.loss, reading.step_seconds) == (7, None, 0.03726)


def test_nanogpt_eval_carries_the_validation_loss() -> None:
    assert parse_nanogpt_eval("step 2000: train loss 1.7640, val loss 1.8925") == Reading(
        "nanogpt", "eval", step=2000, loss=1.8925
    )


def test_nanochat() -> None:
    reading = parse_nanochat(LINES[3][1])
    assert reading == Reading(
        "nanochat",
        "step",
        step=4,
        total=21400,
        loss=8.893647,
        step_seconds=989.44 / 1e3,
        tokens_per_second=529882.0,
        mfu=74.13 / 100,
        per="run",
    )


def test_nanochat_zero_mfu_is_an_unknown_device() -> None:
    reading = parse_nanochat(
        "step 00006 (0.03%) | loss: 2.1 | lrm: 1.00 | dt: 990.00ms | tok/sec: 529,584 | bf16_mfu: 0.00 |"
    )
    assert reading is not None
    assert (reading.mfu, reading.total, reading.step) == (None, None, 6)


@pytest.mark.parametrize(
    ("text", "loss"),
    [
        ("{'loss': 2.3456, 'epoch': 0.12}", 2.3456),
        ("{'loss': '2.346', 'grad_norm': '1.2', 'epoch': '0.12'}", 2.346),
        ("{'loss': nan, 'grad_norm': nan, 'epoch': 0.12}", None),
        ("{'grad_norm': 1.2, 'loss': 1e-05}", 1e-05),
    ],
)
def test_transformers_dicts(text: str, loss: float | None) -> None:
    assert parse_transformers(text) == Reading("transformers", "step", loss=loss)


def test_transformers_evaluation_and_summary_are_no_steps() -> None:
    evaluation = parse_transformers("{'eval_loss': 2.21, 'eval_runtime': 1.2}")
    assert evaluation == Reading("transformers", "eval", loss=2.21)
    summary = "{'train_runtime': 606.0988, 'train_steps_per_second': 0.033, 'train_loss': 0.23, 'epoch': 4.0}"
    assert LogReader().read(summary) is None


def test_a_bar_on_the_same_line_lends_its_step() -> None:
    reading = parse_transformers(" 12%|█▏   | 12/100 [00:01<00:09]{'loss': 2.5, 'epoch': 0.1}")
    assert reading == Reading("transformers", "step", step=12, total=100, loss=2.5)


@pytest.mark.parametrize(
    "text", ["Map: 100%|███| 1000/1000 [00:00<00:00]", "12/100 [", "Loading shards:  50%|█ | 1/2 [00:01"]
)
def test_bars_of_others_do_not_count(text: str) -> None:
    assert parse_bar(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            LINES[6][1],
            {"step": 10, "loss": 9.512345, "step_seconds": 0.38122, "tokens_per_second": 1375213.11},
        ),
        (
            "step    1/3 | loss 11.032358 (+nanz)| norm 22.1414 (+nanz)| lr 8.57e-07 | 2498.84 ms | 40.2% bf16 MFU | 209813 tok/s",
            {
                "step": 1,
                "total": 3,
                "loss": 11.032358,
                "step_seconds": 2.49884,
                "tokens_per_second": 209813.0,
            },
        ),
        (
            "step    1/10 | train loss 5.270009 | norm 30.0101 | lr 1.00e-04 | (1234.56 ms | 830 tok/s)",
            {"step": 1, "total": 10, "loss": 5.270009, "step_seconds": 1.23456, "tokens_per_second": 830.0},
        ),
        (
            "Step 10/100, Loss: 1.2345 | Average steps/s: 2.10 | Average tokens/s: 8601.60 | Average TFLOPS: 412.30",
            {"step": 10, "total": 100, "loss": 1.2345, "tokens_per_second": 8601.6},
        ),
        (
            "[rank 0] Step: 12    | Loss: 8.1234 | Tokens/s: 412.00K | Tokens/s/GPU:  51.50K | MFU: 38.21%",
            {"step": 12, "loss": 8.1234, "tokens_per_second": 412e3, "mfu": 0.3821},
        ),
        ('{"step": 5, "loss": 2.5, "step_time": "0.2s"}', {"step": 5, "loss": 2.5}),
        ("Step 10 | loss:1.2345 lr:2e-05 tokens_per_second_per_gpu:1234.5", {"step": 10, "loss": 1.2345}),
        (
            "epoch 3 step 1,200 loss=nan time=12.5ms mfu=38.2",
            {"step": 1200, "step_seconds": 0.0125, "mfu": 0.382},
        ),
        ("global_step=7 train_loss=0.5 dt=0.25s", {"step": 7, "loss": 0.5, "step_seconds": 0.25}),
        ("step 7 val loss 3.5, loss 2.5", {"step": 7, "loss": 2.5}),
        ("step 7 loss 2.5 mfu 0.43", {"step": 7, "loss": 2.5}),  # a fraction or per cent: unknown
        ("step 7 loss 2.5 mfu -100.00%", {"step": 7, "loss": 2.5}),
        ("step 7 loss 2.5 time 12.5s", {"step": 7, "loss": 2.5}),  # since the start or of the step: unknown
        ("step 7 loss 2.5 elapsed 900ms", {"step": 7, "loss": 2.5}),
        ("INFO step: 20  loss: 11.83506  grad_norm:  9.6669  tps: 4,376", {"step": 20, "loss": 11.83506}),
    ],
)
def test_generic_lines(text: str, expected: dict[str, float]) -> None:
    reading = parse_generic_step(text)
    assert reading is not None
    facts = ("step", "total", "loss", "step_seconds", "tokens_per_second", "mfu")
    found = {name: getattr(reading, name) for name in facts if getattr(reading, name) is not None}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "step 10",
        "step 2000: val loss 1.8925",
        "In step 3 we reduce the loss.",
        "At step 5 the loss was about 2.3 on average",
        "step 2: the loss of 3 workers",
        "loss: 2.5",
        "epoch 3 | loss 2.5",
        "warmup steps: 100, loss scale 2.0",
        "step:1390/1390 val_loss:3.2773 step_avg:57.37ms",
        "across 5 steps, glossy 2.0",
        "step 2.5 loss 1.0",
        "step 5 ms loss 1.0",
        "step 1 loss 2.5 " + "x" * 2000,
    ],
)
def test_prose_and_half_lines_are_not_steps(text: str) -> None:
    assert LogReader().read(text) is None


@pytest.mark.parametrize(
    ("text", "flops", "tokens"),
    [
        ("flops per token: 5168640", 5168640, None),
        ("flops_per_token=5168640", 5168640, None),
        ("FLOPs/token: 5.17e6", 5.17e6, None),
        ("Estimated FLOPs per token: 7.485000e+08", 7.485e8, None),
        ("model: 0.80M parameters, FLOPs per token 5.17M", 5.17e6, None),
        ("tokens per iteration will be: 16,384", None, 16384),
        ("tokens per step: 768", None, 768),
    ],
)
def test_generic_start_lines(text: str, flops: float | None, tokens: float | None) -> None:
    assert parse_generic_start(text) == Reading(
        "generic", "start", flops_per_token=flops, tokens_per_step=tokens
    )
    assert any(needle in text.encode() for needle in NEEDLES)


@pytest.mark.parametrize(
    "text", ["flops per token: unknown", "GFLOPs per token: 5", "tokens per second: 12", "loss per token 3.5"]
)
def test_lines_that_state_no_start_figure(text: str) -> None:
    assert parse_generic_start(text) is None


def test_a_known_family_never_flips_to_another() -> None:
    reader = LogReader()
    assert reader.read(LINES[0][1]) is not None
    assert reader.read("step 11 | loss 3.2") is None
    assert reader.read(LINES[3][1]) is None
    assert reader.family == "nanogpt"
    assert reader.read(LINES[2][1]) is not None


def test_a_known_family_takes_over_from_the_generic_one() -> None:
    reader = LogReader()
    assert reader.read("warm-up step 1 loss 3.2") is not None
    assert reader.family == "generic"
    assert reader.read(LINES[0][1]) is not None
    assert reader.family == "nanogpt"


def test_bars_and_start_lines_choose_no_family() -> None:
    reader = LogReader()
    reader.read(LINES[5][1])
    reader.read("tokens per step: 768")
    reader.read(LINES[2][1])
    assert reader.family is None


def test_every_row_says_what_its_figures_are_of() -> None:
    for parser in PARSERS:
        for _, text in LINES:
            reading = parser.parse(text)
            if reading is not None and reading.kind == "step":
                assert reading.per == parser.per


@given(st.text(max_size=200))
def test_any_text_is_read_without_an_error(text: str) -> None:
    LogReader().read(text)


@given(
    st.lists(
        st.sampled_from(
            [
                "step ",
                "iter ",
                "loss",
                ": ",
                "12",
                "3.5",
                "e",
                ",",
                "ms",
                "%|",
                "{'loss'",
                " tok/s",
                "nan",
                "}",
            ]
        )
    )
)
def test_lines_made_of_our_own_words_are_read_without_an_error(words: list[str]) -> None:
    reading = LogReader().read("".join(words))
    assert reading is None or reading.loss is None or abs(reading.loss) < float("inf")
