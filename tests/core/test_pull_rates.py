"""How fast a pull may be, as it is typed."""

from __future__ import annotations

import pytest
import typer

from remote_train.cli.pulling import parse_rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("2MB/s", 2e6),
        ("2MB", 2e6),
        ("500K", 5e5),
        ("500k/s", 5e5),
        ("1.5 MB/s", 1.5e6),
        ("800000", 8e5),
        ("1G", 1e9),
        ("3MiB/s", 3 * 1024**2),
    ],
)
def test_rates(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "fast", "-1MB", "0", "2 MB per second", "1e6", "nan", "inf", "10", "2TB/s"]
)
def test_what_is_no_rate_is_said(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="no rate"):
        parse_rate(text)
