"""From what a host measured to the figures of `bench`'s table, and the table itself."""

from __future__ import annotations

from typing import Any

import pytest

from remote_train.benching import check_answer, judge_meter
from remote_train.errors import ProtocolError
from remote_train.measured import benched
from remote_train.metrics.benchmark import MODELS, Metered, make_model_row, pick_rates, render_ratios
from remote_train.metrics.peaks import DeviceFacts, Peak
from remote_train.shapes import Malformed
from remote_train.show.bench import render_bench

TINY, BABY = MODELS
PARAMETERS = {"tiny": 804_096, "baby": 10_745_088}
"""nanoGPT's models with a vocabulary of 65, positions included, no biases."""
NO_METER = Metered()
PEAK = Peak(1e12, "table: a card", "a card")


def make_row(
    seconds: float = 0.1, metered: Metered = NO_METER, peak: Peak | None = PEAK, **more: Any
) -> dict[str, Any]:
    figures = {
        "step_seconds": seconds,
        "steps": 7,
        "parameters": PARAMETERS["tiny"],
        "dtype": "float32",
        **more,
    }
    return make_model_row(TINY, figures, metered, peak)


@pytest.mark.parametrize("model", MODELS)
def test_parameters_of_the_models_are_those_of_nanogpt(model: Any) -> None:
    vectors = (2 * model.layers + 1) * model.width
    matrices = 12 * model.layers * model.width**2
    counted = matrices + vectors + (model.vocab + model.block) * model.width
    assert counted == PARAMETERS[model.name]


def test_flops_are_the_closed_form_of_nanogpt() -> None:
    # 4 layers, 128, block 64, batch 12: the figure of reference/mfu.md, worked out from nanoGPT's own formula
    assert TINY.compute_flops(PARAMETERS["tiny"]) == 3_969_515_520


def test_the_meters_count_is_used_while_it_agrees() -> None:
    closed = make_row()
    assert closed["flops_source"] == "6N + 12LHQT"
    assert closed["flops_per_second"] == pytest.approx(39.7e9, rel=0.001)
    assert closed["mfu"] == pytest.approx(0.0397, rel=0.001)
    near = make_row(metered=Metered(3_964_207_104.0, "counted", "launch-bound"))
    assert (near["flops_per_step"], near["flops_source"]) == (3_964_207_104.0, "meter, counted")
    assert near["bottleneck"] == "launch-bound"
    far = make_row(metered=Metered(3.5e9, "counted", None))
    assert (far["flops_per_step"], far["flops_metered"]) == (closed["flops_per_step"], 3.5e9)
    assert far["flops_source"] == "6N + 12LHQT"


def test_an_unknown_peak_gives_no_mfu() -> None:
    row = make_row(peak=None)
    assert (row["mfu"], row["peak_flops"], row["peak_source"]) == (None, None, None)
    assert row["tokens_per_second"] == 7680


def test_rates_are_picked_from_a_measured_peak() -> None:
    assert pick_rates({"float32": 1.0, "bfloat16": None, "tf32": 2, "threads": 2, "shapes": {}}) == {
        "float32": 1.0,
        "tf32": 2.0,
    }


def host(name: str, *items: dict[str, Any], **more: Any) -> dict[str, Any]:
    facts = {
        "device": f"card of {name}",
        "threads": None,
        "measured": {"float32": 1e11},
        "bandwidth": 1e10,
        "dispatch": 3e-6,
    }
    return {"host": name, "ok": True, "reason": None, "busy": False, "models": list(items), **facts, **more}


def test_ratios_name_the_dtypes_where_they_differ() -> None:
    rows = [
        host("box", make_row(0.005, dtype="bfloat16")),
        host("local", make_row(0.1)),
        host("old", make_row(0.05)),
    ]
    assert render_ratios(rows) == [
        "tiny: box is 20x faster per step than local, bfloat16 beside float32",
        "tiny: old is 2x faster per step than local",
    ]
    assert render_ratios([host("local", make_row(0.1))]) == []


def test_the_table_has_a_line_for_each_and_says_what_is_the_same() -> None:
    away = {"host": "far", "ok": False, "reason": "far: no route\x1b[2J", "models": []}
    text = render_bench([host("box", make_row(0.005)), away], MODELS, None)
    lines = text.splitlines()
    assert "box: card of box" in lines
    assert "  peak 1.00 TFLOP/s (table: a card)" in lines
    assert any(line.startswith("far: not measured: no route") for line in lines)
    assert "\x1b" not in text
    (cells,) = [line for line in lines if line.startswith("box ")]
    assert "2,000 steps: 10 s" in cells
    assert " 7? " in cells  # too few to rely on
    assert "153,600" in cells
    assert "batch 12" in text
    assert "seed 1337" in text


def test_what_a_host_calls_its_dtypes_reaches_no_terminal() -> None:
    rows = [
        host("box", make_row(0.005, dtype="\x1b[2J")),
        host("local", make_row(), measured={"float32\x1b]0;x\x07": 1e11}),
    ]
    text = render_bench(rows, MODELS, None)
    assert "\x1b" not in text
    assert "\\x1b[2J beside float32" in text
    assert "float32\\x1b]0;x" in text


def test_a_line_of_the_meter_that_is_no_text_is_left_out() -> None:
    assert judge_meter(["\ud800"], DeviceFacts("cpu", "a CPU"), None, {}) == NO_METER


@pytest.mark.parametrize(("answer", "key"), [({"step_seconds": 1.0}, "peak"), ({"peak": {}}, "step_seconds")])
def test_an_answer_to_another_question_is_refused(answer: dict[str, Any], key: str) -> None:
    with pytest.raises(ProtocolError, match=f"box answered `bench` without {key}"):
        check_answer("box", answer, key)
    check_answer("box", {key: 1.0}, key)


@pytest.mark.parametrize(
    "gpu", [{"uuid": "GPU-1", "capability": [8]}, {"index": 0}, {"uuid": "GPU-1", "capability": ["8", "0"]}]
)
def test_half_a_gpu_is_refused(gpu: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        benched({"peak": {}, "gpu": gpu})
    for whole in ([8, 0], [], None):
        benched({"peak": {}, "gpu": {"uuid": "GPU-1", "capability": whole}})


def test_a_narrow_terminal_wraps_cells_and_loses_none() -> None:
    row = host(
        "box", make_row(0.005, metered=Metered(3.97e9, "counted", "waiting for the host to launch work"))
    )
    text = render_bench([row], MODELS, 90)
    table = text[text.index("HOST ") : text.index("\n\n", text.index("HOST "))]
    assert max(map(len, table.splitlines())) <= 90
    assert {"waiting", "for", "the", "host", "to", "launch", "work"} <= set(table.split())
