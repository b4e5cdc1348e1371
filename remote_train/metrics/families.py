"""What each log format's figures are of: one row per family, for the docs and for whoever is told a printed MFU. Data."""

from __future__ import annotations

from dataclasses import dataclass

A100 = "an A100's 312 TFLOP/s"
H100 = "an H100's 989.5 TFLOP/s"


@dataclass(frozen=True, slots=True)
class Family:
    """Where FLOP/s come from and whether rates are per device or of the run; `mfu_of`: what its printed MFU divides by."""

    name: str
    rates: str
    flops: str
    mfu_of: str = "prints none"
    fixed: str | None = None  # a peak that is divided by on every device


FAMILIES = (
    Family(
        "nanogpt", "per step; MFU per device", "6N + 12LHQT of its start lines", f"{A100}, always", fixed=A100
    ),
    Family(
        "nanochat", "run", "`Estimated FLOPs per token` x tokens/s", "its own table's bf16 peak, all devices"
    ),
    Family("build-nanogpt", "run", "only with a line `flops per token`"),
    Family("modded-nanogpt", "step time from the training time of two lines", "unknown"),
    Family("llm.c", "run", "unknown", "its own table's peak, per device; -100 % is unknown"),
    Family(
        "torchtitan",
        "device",
        "`tflops`, or older `mfu` x the peak it names at its start",
        "its own table's bf16 peak; an A100's where it knows none",
    ),
    Family("litgpt", "one micro-batch of the run", "`Measured TFLOPs` / iter time"),
    Family(
        "megatron",
        "step time of the run, TFLOP/s per device",
        "`throughput per GPU`, with `--log-throughput`",
    ),
    Family("deepspeed", "samples/s of the run; gives way to any line with a loss", "unknown"),
    Family("picotron", "device", "MFU x 989.5 TFLOP/s", f"{H100}, always", fixed=H100),
    Family("nanotron", "device, three digits", "`model_tflops_per_gpu`"),
    Family(
        "composer",
        "device",
        "`throughput/device/flops_per_sec`",
        "its own table's peak, per device; a fraction",
    ),
    Family("torchtune", "device", "unknown"),
    Family("accelerate", "the process that prints", "`Average TFLOPS`"),
    Family("transformers", "loss and step only", "unknown"),
    Family("generic", "run", "only with a line `flops per token`", "unknown: shown as printed"),
)
FIXED_PEAKS = {f"log:{family.name}": family.fixed for family in FAMILIES if family.fixed}
