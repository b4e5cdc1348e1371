"""Numbers and metric records as text."""

from __future__ import annotations

import math
from datetime import UTC

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_train.show.words import (
    measure_cells,
    render_bytes,
    render_count,
    render_flops,
    render_loss,
    render_metric,
    render_mfu,
    render_reported,
    render_seconds,
    render_time,
    truncate_cells,
)

UNTIMED = settings(deadline=None)  # speed is no test's business, and the machine may be busy

# The 4070 Ti of DESIGN.md §1: 31.2 of its 80.2 TFLOP/s is 38.9 %, and nanoGPT prints 10 % of an A100.
RECORD: dict[str, object] = {
    "attempt": 1,
    "step": 120,
    "loss": 2.31,
    "step_seconds": 0.0614,
    "tokens_per_second": 12_500.0,
    "flops_per_second": 31.2e12,
    "mfu": 31.2 / 80.2,
    "peak_flops": 80.2e12,
    "peak_source": "table: RTX 4070 Ti, bf16 dense",
    "reported_mfu": 0.1,
    "source": "log:nanogpt",
}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.00042, "0.42 ms"),
        (0.0614, "61.4 ms"),
        (0.9994, "999 ms"),
        (0.9999, "1.0 s"),
        (3.2, "3.2 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (80, "1 min 20 s"),
        (245, "4 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (86_399, "1 d 00 h"),
        (270_000, "3 d 03 h"),
        (math.nan, "-"),
        (math.inf, "-"),
        (-1, "-"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert render_seconds(seconds) == text


@UNTIMED
@given(st.floats(0, 1e8))
def test_a_duration_never_shows_sixty_of_anything(seconds: float) -> None:
    words = render_seconds(seconds).split()
    sizes = dict(zip(words[1::2], map(float, words[::2]), strict=True))
    limits = {"ms": 1000, "s": 60, "min": 60, "h": 24, "d": math.inf}
    assert all(size < limits[unit] for unit, size in sizes.items())


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.50 kB"),
        (999_600, "1.00 MB"),
        (12.3e6, "12.3 MB"),
        (2e30, "2000000000000 EB"),
    ],
)
def test_bytes(count: float, text: str) -> None:
    assert render_bytes(count) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (80.2e12, "80.2 TFLOP/s"),
        (31.2e9, "31.2 GFLOP/s"),
        (312e12, "312 TFLOP/s"),
        (999.6e9, "1.00 TFLOP/s"),
        (8 * 989.5e12, "7.92 PFLOP/s"),
        (0, "0 FLOP/s"),
    ],
)
def test_flops(rate: float, text: str) -> None:
    assert render_flops(rate) == text


def test_counts_losses_and_times() -> None:
    assert [render_count(value) for value in (12_500, 99.96, 3.25)] == ["12,500", "100", "3.25"]
    assert [render_loss(value) for value in (2.31, 2.34567, math.nan)] == ["2.31", "2.346", "nan"]
    assert render_time(1_750_000_000, UTC) == "2025-06-15 15:06"


def test_a_whole_record() -> None:
    assert render_metric(RECORD, 80, steps=2000) == (
        "step 120/2000 · loss 2.31 · 61.4 ms/step · 12,500 tok/s · "
        "MFU 38.9 % of 80.2 TFLOP/s (table: RTX 4070 Ti, bf16 dense) · ETA 1 min 20 s"
    )


@UNTIMED
@given(st.sets(st.sampled_from(sorted(RECORD))))
def test_what_is_unknown_is_left_out(unknown: set[str]) -> None:
    absent = {key: value for key, value in RECORD.items() if key not in unknown}
    null = {key: None if key in unknown else value for key, value in RECORD.items()}
    text = render_metric(absent)
    assert text == render_metric(null)
    assert "None" not in text
    assert "· ·" not in text
    assert ("loss" in text) == ("loss" not in unknown)
    assert ("MFU" in text) == ("mfu" not in unknown)


def test_nothing_known_is_nothing_said() -> None:
    assert render_metric({}) == ""
    assert render_reported({}) is None


def test_beside_every_mfu_stands_its_denominator() -> None:
    assert render_mfu({"mfu": 0.5}) == "MFU 50.0 % of an unknown peak (source unknown)"
    assert render_mfu({"mfu": 0.5, "peak_flops": 1e12}) == "MFU 50.0 % of 1.00 TFLOP/s (source unknown)"


def test_without_a_peak_the_achieved_rate_is_shown() -> None:
    assert render_mfu({"flops_per_second": 31.2e9}) == "31.2 GFLOP/s"


@pytest.mark.parametrize(
    ("mfu", "doubted"), [(1.0, False), (1.21, False), (1.3, False), (1.31, True), (8, True)]
)
def test_an_mfu_is_never_clamped_and_doubted_only_far_above_one(mfu: float, *, doubted: bool) -> None:
    text = render_mfu(RECORD | {"mfu": mfu})
    assert text is not None
    assert text.startswith(f"MFU {mfu * 100:.1f} %")
    assert text.endswith("(denominator looks wrong)") == doubted


def test_a_hostile_card_name_is_shown() -> None:
    assert r"\x1b[2J" in render_metric(RECORD | {"peak_source": "table: \x1b[2J"})


def test_what_the_script_says_stands_with_its_denominator() -> None:
    assert render_reported(RECORD) == "script says 10.0 % (of an A100's 312 TFLOP/s)"
    assert render_reported(RECORD | {"source": "log:other"}) == "script says 10.0 %"
    assert render_reported(RECORD | {"mfu": None}) is not None


def test_what_the_script_says_is_left_out_when_it_says_the_same() -> None:
    assert render_reported(RECORD | {"mfu": 0.1003}) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, "12", True, None])
def test_a_number_that_is_none_is_left_out(value: object) -> None:
    assert render_metric({"step": value, "mfu": value, "tokens_per_second": value}) == ""


def test_a_loss_that_exploded_is_news() -> None:
    assert render_metric({"loss": math.nan}) == "loss nan"


@pytest.mark.parametrize(("text", "cells"), [("abc", 3), ("图图", 4), ("e\u0301", 1), ("🐢", 2), ("ż…·", 3)])
def test_columns(text: str, cells: int) -> None:
    assert measure_cells(text) == cells


@UNTIMED
@given(st.text("ab图🐢e\u0301", max_size=20), st.integers(-1, 20))
def test_a_cut_text_fits_and_says_so(text: str, width: int) -> None:
    shown = truncate_cells(text, width)
    assert measure_cells(shown) <= max(width, 0)
    assert shown == text or width < 1 or (shown.endswith("…") and text.startswith(shown[:-1]))
