"""An MFU as text: shown as it is over 100 %, doubted over 130 %, never rounded to zero."""

from __future__ import annotations

import pytest

from remote_train.metrics.figures import is_suspect, render_mfu, render_mfu_cell, render_percent


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0.389, "38.9 %"),
        (0.0023, "0.23 %"),
        (0.0999, "9.99 %"),
        (0.09999, "10.0 %"),
        (1.21, "121.0 %"),
        (0.00001, "< 0.01 %"),
        (0, "0.00 %"),
    ],
)
def test_percent(fraction: float, text: str) -> None:
    assert render_percent(fraction) == text
    assert not is_suspect(fraction)
    assert render_mfu(fraction) == render_mfu_cell(fraction) == text


def test_over_130_per_cent_the_denominator_is_doubted() -> None:
    assert [is_suspect(fraction) for fraction in (1.0, 1.3, 1.3001)] == [False, False, True]
    assert render_mfu(2.5) == "250.0 % (denominator looks wrong)"
    assert render_mfu_cell(2.5) == "250.0 %?"
