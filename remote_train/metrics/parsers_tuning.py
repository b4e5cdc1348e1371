"""Lines of libraries that train on one machine or a few: HF Trainer, accelerate, torchtune, litgpt. Text in, Reading or None out.

Formats are those of the print statements of huggingface/transformers trainer_callback.py, huggingface/accelerate
examples/torch_native_parallelism, pytorch/torchtune recipes and utils/metric_logging.py, Lightning-AI/litgpt pretrain.py.
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

_HF_DICT = re.compile(r"\{'[^{}]*\}\s*$")
_HF_VALUE = re.compile(rf"'(?P<key>loss|eval_loss)': '?(?P<value>{NUMBER})'?\s*[,}}]")
# Without a description: transformers' own bar. "Map: 100%|" and "Loading shards: 50%|" are other people's.
_BAR = re.compile(r"\s*\d{1,3}%\|[^|]*\|\s*(?P<step>\d+)/(?P<total>\d+) \[")
_ACCELERATE = re.compile(rf"Step (?P<step>\d+)/(?P<total>\d+), Loss: (?P<loss>{NUMBER}) \|")
_STEPS_RESOLVED = 0.2  # steps per second, printed with two digits, from which on the rounding is within 2.5 %
_TUNE = re.compile(r"Step (?P<step>\d+) \| (?P<rest>.{0,1000})")
_TUNE_VALUE = re.compile(rf"(?P<key>loss|tokens_per_second_per_gpu):(?P<value>{NUMBER})(?=\s|$)")
_TUNE_BAR = re.compile(rf"\d+\|(?P<step>\d+)\|Loss: (?P<loss>{NUMBER})(?=[:\s]|$)")
_LITGPT = re.compile(
    rf"Epoch \d+ \| iter (?P<iter>\d+) step (?P<step>\d+) \| loss train: (?P<loss>{NUMBER}),? [^|]{{0,60}}"
    r"\| iter time: (?P<ms>\d[\d.]*) ms"
)
_LITGPT_EVAL = re.compile(rf"iter (?P<iter>\d+): val loss (?P<loss>{NUMBER}), val time: ")
_LITGPT_FLOPS = re.compile(r"Measured TFLOPs: (?P<tera>\d[\d.,]*)\s*$")


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


def parse_accelerate(text: str) -> Reading | None:
    """Read the line of accelerate's parallelism examples: tokens and FLOPs are those of the process that prints."""
    match = _ACCELERATE.match(text)
    if match is None:
        return None
    fields = split_fields(text)
    steps, tera = parse_positive(fields.get("Average steps/s")), parse_positive(fields.get("Average TFLOPS"))
    return Reading(
        "accelerate",
        "step",
        step=parse_count(match["step"]),
        total=parse_count(match["total"]),
        loss=parse_number(match["loss"]),
        step_seconds=1 / steps if steps and steps >= _STEPS_RESOLVED else None,
        tokens_per_second=parse_positive(fields.get("Average tokens/s")),
        flops_per_second=tera and tera * 1e12,
        per="device",
    )


def parse_torchtune(text: str) -> Reading | None:
    """Read the line of torchtune's StdoutLogger; tokens per second are of one device."""
    match = _TUNE.match(text)
    values = {found["key"]: found["value"] for found in _TUNE_VALUE.finditer(match["rest"])} if match else {}
    if match is None or len(values) < 2:
        return None
    return Reading(
        "torchtune",
        "step",
        step=parse_count(match["step"]),
        loss=parse_number(values["loss"]),
        tokens_per_second=parse_positive(values["tokens_per_second_per_gpu"]),
        per="device",
    )


def parse_torchtune_bar(text: str) -> Reading | None:
    """Read torchtune's progress bar, `epoch|step|Loss: x`, drawn several times a step."""
    match = _TUNE_BAR.match(text)
    if match is None:
        return None
    return Reading(
        "torchtune", "step", step=parse_count(match["step"]), loss=parse_number(match["loss"]), per="device"
    )


def parse_litgpt(text: str) -> Reading | None:
    """Read litgpt's line of one micro-batch: it has the time of that, and of a step only where a step has just one."""
    match = _LITGPT.match(text)
    if match is None:
        return None
    milliseconds = parse_positive(match["ms"])
    seconds = milliseconds and milliseconds / 1e3
    return Reading(
        "litgpt",
        "step",
        step=parse_count(match["step"]),
        loss=parse_number(match["loss"]),
        step_seconds=seconds if match["iter"] == match["step"] else None,
        iteration_seconds=seconds,
    )


def parse_litgpt_eval(text: str) -> Reading | None:
    """Read litgpt's validation loss; its number is of a micro-batch and no step."""
    match = _LITGPT_EVAL.match(text)
    return Reading("litgpt", "eval", loss=parse_number(match["loss"])) if match else None


def parse_litgpt_start(text: str) -> Reading | None:
    """Read what litgpt measured on the meta device: forward and backward of one micro-batch on every device."""
    match = _LITGPT_FLOPS.match(text)
    tera = parse_positive(match["tera"]) if match else None
    return Reading("litgpt", "start", flops_per_iteration=tera * 1e12) if tera else None
