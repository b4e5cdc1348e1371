"""Lines of frameworks for many devices: torchtitan, Megatron-LM, DeepSpeed, picotron, nanotron, composer. Text in, Reading or None out.

Formats are those of the print statements of pytorch/torchtitan components/metrics.py, NVIDIA/Megatron-LM training/training.py,
deepspeedai/DeepSpeed utils/timer.py and runtime/engine.py, huggingface/picotron train.py, huggingface/nanotron trainer.py,
mosaicml/composer loggers/console_logger.py. Where a line states both kinds of rates, those of one device are taken.
"""

from __future__ import annotations

import re
from typing import Literal

from remote_train.metrics.reading import (
    NUMBER,
    Reading,
    parse_count,
    parse_number,
    parse_positive,
    split_fields,
)

H100_FLOPS = 989.5e12  # what picotron divides by on every device

_TITAN = re.compile(
    rf"(?P<kind>\bvalidate )?\bstep:\s{{0,9}}(?P<step>\d+)\s+loss:\s{{0,9}}(?P<loss>{NUMBER})\s"
)
_TITAN_RATE = re.compile(r"\b[tw]ps:\s{0,9}(?P<tps>\d[\d,]*)")
_TITAN_FLOPS = re.compile(r"\btflops:\s{0,9}(?P<tera>\d[\d,.]*)")
_TITAN_MFU = re.compile(r"\bmfu:\s{0,9}(?P<mfu>\d[\d.]*)%")
_TITAN_PEAK = re.compile(rf"Peak FLOPS used for computing MFU: (?P<peak>{NUMBER})")
_TITAN_BATCH = re.compile(r"\bglobal batch size (?P<batch>\d+)\b")
_TITAN_LENGTH = re.compile(r"\bsequence length (?P<length>\d+)\b")
_MEGATRON = re.compile(r"\biteration\s{1,20}(?P<step>\d+)/\s{0,20}(?P<total>\d+)\s*$")
_MEGATRON_EVAL = re.compile(r"validation loss at iteration (?P<step>\d+) ")
_DUMPED = re.compile(
    r"(?P<key>\b(?:seq_length|train_batch_size)|loss_scale\w*|float16_config) \.{4,} ?(?P<value>\d+)?"
)
_DEEPSPEED = re.compile(
    rf"global_step=(?P<step>\d+), RunningAvgSamplesPerSec={NUMBER}, CurrSamplesPerSec=(?P<rate>{NUMBER})"
)
_DEEPSPEED_STEP = re.compile(r"\bstep=(?P<step>\d+), skipped=\d+, lr=")
_PICOTRON = re.compile(rf"\[rank \d+\] Step: (?P<step>\d+)\s*\| Loss:\s*(?P<loss>{NUMBER}) \|")
_NANOTRON = re.compile(r"\biteration: (?P<step>\d+) / (?P<total>\d+) \|")
_COMPOSER = re.compile(
    r"\[(?:epoch=(?P<epoch>\d+)\]\[)?(?P<unit>Eval batch|batch|token|sample|iteration|second)=(?P<done>\d+)"
    r"(?:/(?P<total>\d+))?\](?: Eval on .{1,200})?:?\s*$"
)
_COMPOSER_KEY = re.compile(rf"\s+(?P<kind>Train|Eval) (?P<key>[\w/.-]{{1,100}}): (?P<value>{NUMBER})\s*$")
_COMPOSER_FIELDS = {
    "loss/train/total": "loss",
    "throughput/device/tokens_per_sec": "tokens_per_second",
    "throughput/device/flops_per_sec": "flops_per_second",
    "throughput/device/mfu": "mfu",
    "time/batch": "step",
}
_COMPOSER_RATE = (
    0.01  # batches per second, printed with four digits, from which on the rounding is within 0.5 %
)


def parse_titan(text: str) -> Reading | None:
    """Read torchtitan's line: tokens per second (older: wps), TFLOP/s and mfu (older: of an A100 if unknown) of one device."""
    match = _TITAN.search(text) if " memory:" in text else None
    rate = _TITAN_RATE.search(text) if match else None
    if match is None or rate is None:
        return None
    kind: Literal["eval", "step"] = "eval" if match["kind"] else "step"
    flops, mfu = _TITAN_FLOPS.search(text), _TITAN_MFU.search(text)
    tera, percent = parse_positive(flops and flops["tera"]), parse_positive(mfu and mfu["mfu"])
    return Reading(
        "torchtitan",
        kind,
        step=parse_count(match["step"]),
        loss=parse_number(match["loss"]),
        tokens_per_second=parse_positive(rate["tps"]),
        flops_per_second=tera and tera * 1e12,
        mfu=percent and percent / 100,
        per="device",
    )


def parse_titan_start(text: str) -> Reading | None:
    """Read torchtitan's start: the peak it divides by, and the tokens of a step."""
    if match := _TITAN_PEAK.search(text):
        return Reading("torchtitan", "start", mfu_peak=parse_positive(match["peak"]))
    batch, length = _TITAN_BATCH.search(text), _TITAN_LENGTH.search(text)
    if "Training starts at step" not in text or not batch or not length:
        return None
    return Reading("torchtitan", "start", tokens_per_step=float(batch["batch"]) * float(length["length"]))


def parse_megatron(text: str) -> Reading | None:
    """Read Megatron-LM's line and its forks': the mean time of an iteration, and TFLOP/s of one device where printed."""
    head, _, rest = text.partition("|")
    match, fields = _MEGATRON.search(head[-200:]), split_fields(rest)
    milliseconds = parse_positive(_first(fields.get("elapsed time per iteration (ms)")))
    if match is None or milliseconds is None:
        return None
    tera = parse_positive(_first(fields.get("throughput per GPU (TFLOP/s/GPU)") or fields.get("TFLOPs")))
    return Reading(
        "megatron",
        "step",
        step=parse_count(match["step"]),
        total=parse_count(match["total"]),
        loss=parse_number(_find_loss(fields)),
        step_seconds=milliseconds / 1e3,
        samples_per_step=parse_positive(fields.get("global batch size")),
        flops_per_second=tera and tera * 1e12,
        per="device",
    )


def _find_loss(fields: dict[str, str]) -> str:
    """Give "lm loss", or the first loss of a model that has others; the loss scale is none."""
    return fields.get("lm loss") or next((fields[key] for key in fields if key.endswith("loss")), "")


def _first(value: str | None) -> str | None:
    """Give the newest of "newest/mean", as some forks print a figure."""
    return value.partition("/")[0] if value else None


def parse_megatron_eval(text: str) -> Reading | None:
    """Read Megatron-LM's validation loss."""
    match = _MEGATRON_EVAL.search(text)
    if match is None:
        return None
    loss = parse_number(split_fields(text).get("lm loss value", ""))
    return Reading("megatron", "eval", step=parse_count(match["step"]), loss=loss)


def parse_dumped(text: str) -> Reading | None:
    """Read a setting as Megatron-LM and DeepSpeed list them, `seq_length ........ 4096`; a loss scale only tells who prints."""
    match = _DUMPED.search(text)
    if match is None:
        return None
    value = parse_positive(match["value"])
    if match["key"] == "seq_length":
        return Reading("megatron", "start", tokens_per_sample=value)
    return Reading(
        "deepspeed", "start", samples_per_step=value if match["key"] == "train_batch_size" else None
    )


def parse_deepspeed(text: str) -> Reading | None:
    """Read DeepSpeed's timer: samples per second of the whole run; the step's time needs its train_batch_size."""
    match = _DEEPSPEED.search(text)
    if match is None:
        return None
    rate = parse_positive(match["rate"])
    return Reading("deepspeed", "step", step=parse_count(match["step"]), samples_per_second=rate)


def parse_deepspeed_step(text: str) -> Reading | None:
    """Read the line that only tells how many steps DeepSpeed has done."""
    match = _DEEPSPEED_STEP.search(text)
    return Reading("deepspeed", "step", step=parse_count(match["step"])) if match else None


def parse_picotron(text: str) -> Reading | None:
    """Read picotron's line; its MFU is of one H100 per device, on every device."""
    match = _PICOTRON.search(text)
    if match is None:
        return None
    fields = split_fields(text[match.start() :])
    mfu = parse_positive(fields.get("MFU", "").removesuffix("%"))
    return Reading(
        "picotron",
        "step",
        step=parse_count(match["step"]),
        loss=parse_number(match["loss"]),
        tokens_per_second=parse_positive(fields.get("Tokens/s/GPU")),
        flops_per_second=mfu and mfu / 100 * H100_FLOPS,
        mfu=mfu and mfu / 100,
        tokens_per_step=parse_positive(fields.get("Global batch size")),
        per="device",
    )


def parse_nanotron(text: str) -> Reading | None:
    """Read nanotron's line: three digits with K, M, B; tokens and model TFLOP/s of one device."""
    match = _NANOTRON.search(text)
    if match is None:
        return None
    fields = split_fields(text[match.start() :])
    milliseconds = parse_positive(
        fields.get("time_per_iteration_ms") or fields.get("elapsed_time_per_iteration_ms")
    )
    tera = parse_positive(fields.get("model_tflops_per_gpu"))
    return Reading(
        "nanotron",
        "step",
        step=parse_count(match["step"]),
        total=parse_count(match["total"]),
        loss=parse_number(fields.get("lm_loss", "")),
        step_seconds=milliseconds and milliseconds / 1e3,
        tokens_per_second=parse_positive(fields.get("tokens_per_sec_per_gpu")),
        flops_per_second=tera and tera * 1e12,
        per="device",
    )


def parse_composer(text: str) -> Reading | None:
    """Read composer's heading of a step; the figures follow one by one on lines of their own."""
    match = _COMPOSER.match(text)
    if match is None:
        return None
    done, total, epoch = parse_count(match["done"]), parse_count(match["total"]), parse_count(match["epoch"])
    if match["unit"] != "batch":  # an evaluation, or a run that is counted in tokens or samples
        return Reading("composer", "block", per="device")
    if epoch is None:
        return Reading("composer", "block", step=done, total=total, per="device")
    known = done is not None and total is not None
    return Reading("composer", "block", step=(epoch - 1) * total + done if known else None, per="device")  # type: ignore[operator]  # just looked at


def parse_composer_key(text: str) -> Reading | None:
    """Read one figure of composer's; its mfu is a fraction of its own table's peak of this device."""
    match = _COMPOSER_KEY.match(text)
    if match is None:
        return None
    value, key = parse_number(match["value"]), match["key"]
    if match["kind"] == "Eval":
        return Reading("composer", "eval", loss=value) if key.endswith("CrossEntropy") else None
    if key == "throughput/batches_per_sec":
        seconds = 1 / value if value is not None and value >= _COMPOSER_RATE else None
        return Reading("composer", "part", step_seconds=seconds, per="device")
    field = _COMPOSER_FIELDS.get(key)
    if field is None or value is None or (field != "loss" and value <= 0):
        return None
    figure = {field: int(value) if field == "step" else value}
    return Reading("composer", "part", per="device")._replace(**figure)  # type: ignore[arg-type]  # each key has its type
