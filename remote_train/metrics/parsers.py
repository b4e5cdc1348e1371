"""The table of log formats, and who may read a line: known formats first, the generic one last.

A parser is pure: text in, Reading or None out. The only state is which family the output belongs to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from remote_train.metrics.generic import parse_generic_start, parse_generic_step
from remote_train.metrics.reading import NUMBER, Reading, parse_count, parse_number, parse_positive

if TYPE_CHECKING:
    from collections.abc import Callable

# A line that holds none of these says nothing to any parser: what LineSplitter is given ("loss" and "Loss" are
# one needle, "okens" covers tokens per iteration, "lops" and "LOP" the spellings of FLOPs per token).
NEEDLES = (b"oss", b"LOSS", b"%|", b"okens", b"lops", b"LOP", b"Overriding", b"parameter", b"vocab_size")

_NANOGPT_ITER = re.compile(
    rf"iter (?P<step>\d+): loss (?P<loss>{NUMBER}), time (?P<ms>\d[\d.]*)ms(?:, mfu (?P<mfu>-?[\d.]+)%)?(?=[\s,]|$)"
)
_NANOGPT_EVAL = re.compile(rf"step (?P<step>\d+): train loss {NUMBER}, val loss (?P<loss>{NUMBER})")
# The part before the figures differs by script and age: with or without a total, a gradient norm, "bf16_" before mfu.
_NANOCHAT = re.compile(
    rf"step (?P<step>\d+)(?:/(?P<total>\d+))? \([\d.]+%\) \| loss: (?P<loss>{NUMBER}) \|"
    rf".*? dt: (?P<ms>[\d.]+)ms \| tok/sec: (?P<tps>[\d,]+)(?: \| (?:bf16_)?mfu: (?P<mfu>[\d.]+))?"
)
_HF_DICT = re.compile(r"\{'[^{}]*\}\s*$")
_HF_VALUE = re.compile(rf"'(?P<key>loss|eval_loss)': '?(?P<value>{NUMBER})'?\s*[,}}]")
# Without a description: transformers' own bar. "Map: 100%|" and "Loading shards: 50%|" are other people's.
_BAR = re.compile(r"\s*\d{1,3}%\|[^|]*\|\s*(?P<step>\d+)/(?P<total>\d+) \[")


@dataclass(frozen=True, slots=True)
class Parser:
    """One row of the table; `gate` is a piece of text without which `parse` need not be tried."""

    family: str
    per: Literal["device", "run"]
    gate: str
    parse: Callable[[str], Reading | None]


def parse_nanogpt_iter(text: str) -> Reading | None:
    """Read nanoGPT's line of an iteration; its mfu is of one A100 per process, and -100 % stands for "not yet"."""
    match = _NANOGPT_ITER.match(text)
    if match is None:
        return None
    milliseconds, mfu = parse_positive(match["ms"]), parse_number(match["mfu"] or "")
    return Reading(
        "nanogpt",
        "step",
        step=parse_count(match["step"]),
        loss=parse_number(match["loss"]),
        step_seconds=milliseconds and milliseconds / 1e3,
        mfu=mfu / 100 if mfu is not None and mfu >= 0 else None,
        per="device",
    )


def parse_nanogpt_eval(text: str) -> Reading | None:
    """Read nanoGPT's line of an evaluation, printed before the iteration of the same number."""
    match = _NANOGPT_EVAL.match(text)
    if match is None:
        return None
    return Reading("nanogpt", "eval", step=parse_count(match["step"]), loss=parse_number(match["loss"]))


def parse_nanochat(text: str) -> Reading | None:
    """Read nanochat's line: tokens per second of all devices, mfu in per cent without a sign (0 means unknown)."""
    match = _NANOCHAT.match(text)
    if match is None:
        return None
    milliseconds, mfu = parse_positive(match["ms"]), parse_positive(match["mfu"])
    return Reading(
        "nanochat",
        "step",
        step=parse_count(match["step"]),
        total=parse_count(match["total"]),
        loss=parse_number(match["loss"]),
        step_seconds=milliseconds and milliseconds / 1e3,
        tokens_per_second=parse_positive(match["tps"]),
        mfu=mfu and mfu / 100,
    )


def parse_transformers(text: str) -> Reading | None:
    """Read the dict that HF's Trainer prints; it has no step, so a bar on the same line lends its own."""
    found = _HF_DICT.search(text)
    value = found and _HF_VALUE.search(found[0])
    if not found or not value:
        return None
    loss = parse_number(value["value"])
    if value["key"] == "eval_loss":
        return Reading("transformers", "eval", loss=loss)
    bar = parse_bar(text[: found.start()])
    return Reading(
        "transformers", "step", step=bar.step if bar else None, total=bar.total if bar else None, loss=loss
    )


def parse_bar(text: str) -> Reading | None:
    """Read a tqdm bar without a description."""
    match = _BAR.match(text)
    if match is None:
        return None
    return Reading("bar", "bar", step=parse_count(match["step"]), total=parse_count(match["total"]))


PARSERS = (
    Parser("nanogpt", "device", ", time ", parse_nanogpt_iter),
    Parser("nanogpt", "run", ": train loss ", parse_nanogpt_eval),
    Parser("nanochat", "run", " | loss: ", parse_nanochat),
    Parser("transformers", "run", "loss'", parse_transformers),
    Parser("bar", "run", "%|", parse_bar),
    Parser("generic", "run", "", parse_generic_start),
    Parser("generic", "run", "", parse_generic_step),
)


class LogReader:
    """Read lines with the first parser that fits, and stay with the family of the first step line.

    The generic parser never takes over from a known family; a known family takes over from the generic one.
    """

    def __init__(self) -> None:
        self.family: str | None = None

    def read(self, text: str) -> Reading | None:
        """Tell what the line says, or None."""
        for parser in PARSERS:
            if parser.gate not in text:
                continue
            reading = parser.parse(text)
            if reading is not None:
                return reading if self._accept(reading) else None
        return None

    def _accept(self, reading: Reading) -> bool:
        if reading.kind in {"bar", "start"}:
            return True
        if reading.kind == "step" and self.family in {None, "generic"}:
            self.family = reading.family
        if reading.kind == "eval" and self.family == "generic":
            return True
        return self.family in {None, reading.family}
