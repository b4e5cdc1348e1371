"""What one line of output says: the value every parser makes, and the numbers and units they share."""

from __future__ import annotations

import math
import re
from typing import Literal, NamedTuple

# A number as logs write it: 8.893647, 5.17e6, 529,882, nan, -inf; never the comma of a list.
NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d])|\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf(?:inity)?)"

_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_SUFFIXED = re.compile(rf"\s*({NUMBER})\s*([kmbgt]?)\s*", re.IGNORECASE)


class Reading(NamedTuple):
    """One line's facts; unknown is None.

    `step` lines make a record, `eval` lines mark an evaluation (their loss is the validation loss), `bar` lines tell
    where a progress bar stands, `start` lines state what stays the same. Where a step's figures take several lines, a `block`
    line begins them and `part` lines add to it. `per` says whether tokens per second and FLOP/s are of one device or of
    the whole run; every other figure is of the whole run either way. One is made for every step line: a tuple is made in
    a third of a frozen dataclass's time.
    """

    family: str
    kind: Literal["step", "eval", "bar", "start", "block", "part"]
    step: int | None = None
    total: int | None = None
    loss: float | None = None
    step_seconds: float | None = None  # of one optimizer step
    tokens_per_second: float | None = None
    mfu: float | None = None  # fraction, as printed: of whatever peak the script divides by
    per: Literal["device", "run"] = "run"
    flops_per_token: float | None = None
    tokens_per_step: float | None = None
    flops_per_second: float | None = None
    samples_per_second: float | None = None
    samples_per_step: float | None = None
    tokens_per_sample: float | None = None
    elapsed: float | None = None  # seconds of training up to this line
    iteration_seconds: float | None = None  # of one micro-batch
    flops_per_iteration: float | None = None  # of one micro-batch, on all devices
    mfu_peak: float | None = None  # FLOP/s of one device that the script divides by


_NAMED = {"family", "kind", "per"}


def merge_readings(base: Reading, more: Reading) -> Reading:
    """Return `base` with every figure that `more` knows."""
    known = more._asdict().items()
    return base._replace(**{name: value for name, value in known if value is not None and name not in _NAMED})


def split_fields(text: str) -> dict[str, str]:
    """Read a line of `key: value` fields between bars, in time that grows with its length alone."""
    pairs = (part.partition(":") for part in text.split("|"))
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def parse_number(text: str) -> float | None:
    """Read a number with thousands commas or a suffix K, M, B (G), T; None for nan, inf and anything else."""
    match = _SUFFIXED.fullmatch(text)
    if match is None:
        return None
    value = float(match[1].replace(",", "")) * _SUFFIXES[match[2].lower()]
    return value if math.isfinite(value) else None


def parse_positive(text: str | None) -> float | None:
    """Read a number that only makes sense above 0: a time, a rate."""
    value = parse_number(text) if text else None
    return value if value is not None and value > 0 else None


def parse_count(text: str | None) -> int | None:
    """Read a whole number that may have thousands commas."""
    digits = (text or "").replace(",", "")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 18 else None
