"""Lines of nanoGPT and its relatives: nanochat, build-nanogpt, modded-nanogpt, llm.c. Text in, Reading or None out.

Tokens per second are of all processes in each of them. Formats are those of the projects' print statements: karpathy/nanoGPT
train.py, karpathy/nanochat scripts/base_train.py, karpathy/build-nanogpt train_gpt2.py, KellerJordan/modded-nanogpt
train_gpt.py, karpathy/llm.c train_gpt2.cu and train_gpt2.py.
"""

from __future__ import annotations

import re

from remote_train.metrics.reading import (
    NUMBER,
    Reading,
    parse_count,
    parse_number,
    parse_positive,
    split_fields,
)

_NANOGPT_ITER = re.compile(
    rf"iter (?P<step>\d+): loss (?P<loss>{NUMBER}), time (?P<ms>\d[\d.]*)ms(?:, mfu (?P<mfu>-?[\d.]+)%)?(?=[\s,]|$)"
)
_NANOGPT_EVAL = re.compile(rf"step (?P<step>\d+): train loss {NUMBER}, val loss (?P<loss>{NUMBER})")
# The part before the figures differs by script and age: with or without a total, a gradient norm, "bf16_" before mfu.
_NANOCHAT = re.compile(
    rf"step (?P<step>\d+)(?:/(?P<total>\d+))? \([\d.]+%\) \| loss: (?P<loss>{NUMBER}) \|"
    rf".*? dt: (?P<ms>[\d.]+)ms \| tok/sec: (?P<tps>[\d,]+)(?: \| (?:bf16_)?mfu: (?P<mfu>[\d.]+))?"
)
_BUILD = re.compile(rf"step\s+(?P<step>\d+) \| loss: (?P<loss>{NUMBER}) \|")
_BUILD_EVAL = re.compile(rf"validation loss: (?P<loss>{NUMBER})\s*$")
_LLMC_HEAD = re.compile(
    rf"step\s+(?P<step>\d+)/(?P<total>\d+) \| (?:train )?loss (?P<loss>{NUMBER})(?![\w.])"
)
_LLMC_MFU = re.compile(
    r"\| (?P<ms>\d[\d.]*) ms \| (?P<mfu>-?\d[\d.]*)% [\w -]{0,40}MFU \| (?P<tps>\d[\d,.]*) tok/s"
)
_LLMC_PYTHON = re.compile(r"\| \((?P<ms>\d[\d.]*) ms \| (?P<tps>\d[\d,.]*) tok/s\)")
_LLMC_EVAL = re.compile(rf"val loss (?P<loss>{NUMBER})\s*$")
_MODDED = re.compile(r"step:(?P<step>\d+)/(?P<total>\d+) (?P<rest>.{0,300})")
_MODDED_VALUE = re.compile(
    rf"\b(?P<key>train_loss|val_loss|train_time|step_avg):(?P<value>{NUMBER})(?P<unit>ms)?"
)


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


def parse_build_nanogpt(text: str) -> Reading | None:
    """Read build-nanogpt's line; its dt also holds the evaluation that the same iteration began with."""
    match = _BUILD.match(text)
    fields = split_fields(text) if match else {}
    if match is None or "tok/sec" not in fields:
        return None
    milliseconds = parse_positive(fields.get("dt", "").removesuffix("ms"))
    return Reading(
        "build-nanogpt",
        "step",
        step=parse_count(match["step"]),
        loss=parse_number(match["loss"]),
        step_seconds=milliseconds and milliseconds / 1e3,
        tokens_per_second=parse_positive(fields["tok/sec"]),
    )


def parse_build_nanogpt_eval(text: str) -> Reading | None:
    """Read build-nanogpt's validation loss, printed without a step before the line of the same iteration."""
    match = _BUILD_EVAL.match(text)
    return Reading("build-nanogpt", "eval", loss=parse_number(match["loss"])) if match else None


def parse_llmc(text: str) -> Reading | None:
    """Read a line of llm.c, in CUDA (its mfu is of its own table's peak of this device, -100 % not known) or Python."""
    head = _LLMC_HEAD.match(text)
    tail = (_LLMC_MFU.search(text) or _LLMC_PYTHON.search(text)) if head else None
    if head is None or tail is None:
        return None
    milliseconds, mfu = parse_positive(tail["ms"]), parse_positive(tail.groupdict().get("mfu"))
    return Reading(
        "llm.c",
        "step",
        step=parse_count(head["step"]),
        total=parse_count(head["total"]),
        loss=parse_number(head["loss"]),
        step_seconds=milliseconds and milliseconds / 1e3,
        tokens_per_second=parse_positive(tail["tps"]),
        mfu=mfu and mfu / 100,
    )


def parse_llmc_eval(text: str) -> Reading | None:
    """Read llm.c's validation loss, on a line of its own and outside of the step's time."""
    match = _LLMC_EVAL.match(text)
    return Reading("llm.c", "eval", loss=parse_number(match["loss"])) if match else None


def parse_modded(text: str) -> Reading | None:
    """Read a line of modded-nanogpt: the time since the timed start, no training loss, or a validation loss."""
    match = _MODDED.match(text)
    values = {found["key"]: found for found in _MODDED_VALUE.finditer(match["rest"])} if match else {}
    if match is None or "train_time" not in values:
        return None
    step = parse_count(match["step"])
    if "val_loss" in values:
        return Reading("modded-nanogpt", "eval", step=step, loss=parse_number(values["val_loss"]["value"]))
    mean = values.get("step_avg")
    milliseconds, elapsed = (
        parse_positive(mean and mean["value"]),
        parse_number(values["train_time"]["value"]),
    )
    return Reading(
        "modded-nanogpt",
        "step",
        step=step,
        total=parse_count(match["total"]),
        loss=parse_number(values["train_loss"]["value"]) if "train_loss" in values else None,
        step_seconds=milliseconds and milliseconds / 1e3,
        elapsed=elapsed and elapsed / 1e3,
    )
