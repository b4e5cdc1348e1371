"""Lines of no known format that carry a step and a loss: careful, because any sentence may hold both words.

A step needs its keyword right before a whole number, a loss its keyword right before a number with a decimal point
(or nan, inf); without both there is no reading. A plain "time 12.3 s" is left alone: in the wild it is the time since the
start as often as that of a step.
"""

from __future__ import annotations

import re

from remote_train.metrics.reading import NUMBER, Reading, parse_count, parse_number, parse_positive

_LONGEST = 2000  # characters: longer lines are dumps of something, and searching them costs

_COUNT = r"\d{1,3}(?:,\d{3})+(?!\d)|\d+"
_STEP = re.compile(
    rf"\b(?:global[_ ]step|train[_ ]step|iteration|iter|step)\b[\"']?\s*[:=#\[(]?\s*"
    rf"(?P<step>{_COUNT})(?:\s*/\s*(?P<total>{_COUNT}))?(?![\d.,]*\d|\s*(?:ms|s|sec|%)\b)",
    re.IGNORECASE,
)
_LOSS = re.compile(
    rf"(?P<before>[a-z]{{0,12}})[ _/.\-]?loss[\"']?\s*[:=]?\s*(?P<value>{NUMBER})(?![\w.])",
    re.IGNORECASE,
)
_LOSSES_OF_OTHERS = re.compile(
    r"val|valid|validation|eval|evaluation|test|dev|best|min|minimum|target|aux|prev|previous|initial|final|no",
    re.IGNORECASE,
)
_TIME = re.compile(
    r"\b(?:(?:dt|step[_ ]time|iter[_ ]time|time[_ /]per[_ /](?:step|iter)|time/(?:step|iter)|step_avg)[\"']?\s*[:=]?\s*"
    r"(?P<value>\d[\d.,]*)\s*(?P<unit>ms|s|sec|seconds)\b"
    r"|(?P<ratio>\d[\d.,]*)\s*(?P<ratio_unit>ms|s)/(?:it|iter|step)\b)",
    re.IGNORECASE,
)
_MILLISECONDS = re.compile(
    r"(?P<before>[a-z_]{0,20})[\"']?\s*[:=]?\s*(?P<value>\b\d[\d.,]*)\s?ms\b", re.IGNORECASE
)
_TIMES_OF_OTHERS = re.compile(
    r"total|train|elapsed|eval|val|eta|remain|data|load|fwd|bwd|forward|backward", re.IGNORECASE
)
_RATE_NAME = r"tok(?:en)?s?(?:\s?/\s?|[_ ]per[_ ])s(?:ec(?:ond)?)?\b(?![/_ ]*(?:per[_ ])?(?:gpu|device|rank))"
_RATE_AFTER = re.compile(
    rf"\b{_RATE_NAME}[\"']?\s*[:=]?\s*(?P<value>{NUMBER}\s?[KMB]?)(?![\w.])", re.IGNORECASE
)
_RATE_BEFORE = re.compile(rf"(?<![\w.,])(?P<value>{NUMBER}\s?[KMB]?)\s*{_RATE_NAME}", re.IGNORECASE)
_MFU = re.compile(r"\bmfu\b[\"']?\s*[:=]?\s*(?P<value>-?\d[\d.]*)\s*(?P<sign>%?)", re.IGNORECASE)
_FLOPS = re.compile(
    rf"\bflops?[ _]?(?:per|/)[ _]?token\b[\"']?(?:\s+(?:is|are|will be))?\s*[:=]?\s*(?P<value>{NUMBER}\s?[KMGBT]?)(?![\w.])",
    re.IGNORECASE,
)
_TOKENS = re.compile(
    rf"\btokens[ _]?(?:per|/)[ _]?(?:iteration|iter|step)\b(?: will be)?[\"']?\s*[:=]?\s*(?P<value>{NUMBER}\s?[KMB]?)(?![\w.])",
    re.IGNORECASE,
)


def parse_generic_start(text: str) -> Reading | None:
    """Read `flops per token: 5168640` or `tokens per step: 768`, in the spellings that scripts use."""
    if "oken" not in text.lower():
        return None
    flops, tokens = _FLOPS.search(text), _TOKENS.search(text)
    if not flops and not tokens:
        return None
    return Reading(
        "generic",
        "start",
        flops_per_token=parse_positive(flops["value"]) if flops else None,
        tokens_per_step=parse_positive(tokens["value"]) if tokens else None,
    )


def parse_generic_step(text: str) -> Reading | None:
    """Read a line that has a step and a training loss; time, tokens per second (of all devices) and mfu if there."""
    lower = text.lower() if len(text) <= _LONGEST else ""
    if "step" not in lower and "iter" not in lower:
        return None
    loss = _find_loss(text)
    step = loss and _STEP.search(text)
    if not loss or not step:
        return None
    return Reading(
        "generic",
        "step",
        step=parse_count(step["step"]),
        total=parse_count(step["total"]),
        loss=parse_number(loss),
        step_seconds=_find_seconds(text),
        tokens_per_second=_find_rate(text),
        mfu=_find_mfu(text),
    )


def _find_loss(text: str) -> str | None:
    for match in _LOSS.finditer(text):
        value = match["value"]
        if not _LOSSES_OF_OTHERS.fullmatch(match["before"]) and re.search(r"[.enEN]", value):
            return value
    return None


def _find_seconds(text: str) -> float | None:
    match = _TIME.search(text)
    if match:
        value = parse_positive(match["value"] or match["ratio"])
        unit = (match["unit"] or match["ratio_unit"]).lower()
        return value and (value / 1e3 if unit == "ms" else value)
    # A bare "381.22 ms" is the time of the step when it is the only one.
    bare = [m for m in _MILLISECONDS.finditer(text) if not _TIMES_OF_OTHERS.search(m["before"])]
    value = parse_positive(bare[0]["value"]) if len(bare) == 1 else None
    return value and value / 1e3


def _find_rate(text: str) -> float | None:
    match = _RATE_AFTER.search(text) or _RATE_BEFORE.search(text)
    return parse_positive(match["value"]) if match else None


def _find_mfu(text: str) -> float | None:
    """Read mfu as a fraction; without a sign it is per cent when over 1.5, and unknown below: both are in use."""
    match = _MFU.search(text)
    value = parse_number(match["value"]) if match else None
    if match is None or value is None or value < 0 or (not match["sign"] and value <= 1.5):
        return None
    return value / 100
