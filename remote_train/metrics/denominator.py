"""Which device a run used, and so what its MFU is divided by. From records alone: old runs can be derived anew."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from remote_train.metrics.peaks import DeviceFacts, Peak, choose_peak

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MEASURED = ("float", "bfloat", "tf32")
"""How the dtypes begin that a host measures matrix products in; the rest of its record is no peak."""


def choose_device(
    kind: str, cpu: Mapping[str, Any], gpus: Sequence[Mapping[str, Any]], processes: int
) -> DeviceFacts:
    """Return the device of one rank; `count` is how many of them the whole run uses.

    Processes on a CPU share that CPU: it is one device, whose threads they divide among them.
    """
    if kind == "cpu" or not gpus:
        return DeviceFacts(
            kind="cpu", name=str(cpu.get("model")), sm_count=None, clock_mhz=None, capability=None, count=1
        )
    gpu = gpus[0]
    capability = gpu.get("capability")
    return DeviceFacts(
        kind="cuda",
        name=str(gpu.get("name")),
        sm_count=gpu.get("sm_count"),
        clock_mhz=gpu.get("clock_mhz"),
        capability=(capability[0], capability[1]) if capability else None,
        count=processes,
    )


def choose_device_peak(
    device: DeviceFacts,
    dtype: str,
    tflops: Mapping[str, float] | None,
    measured: Mapping[str, Any] | None,
) -> Peak | None:
    """Return the peak of one device for a dtype: the user's figure, the table's, or the measured one."""
    figures = {
        key: float(value)
        for key, value in (measured or {}).items()
        if isinstance(value, int | float) and key.startswith(MEASURED)
    }
    facts = measured or {}
    shapes = {key: size for key, size in (facts.get("shapes") or {}).items() if isinstance(size, int)}
    peak = choose_peak(
        device,
        dtype,
        overrides=tflops,
        measured=figures or None,
        threads=facts.get("threads"),
        shapes=shapes,
    )
    if peak is not None and peak.source.startswith("measured") and (measured or {}).get("busy"):
        return replace(peak, source=f"{peak.source}, while the machine was busy")
    return peak


def choose_usual_dtype(device: DeviceFacts) -> str:
    """Return what trainings usually compute in on a device, for output that does not say."""
    if device.kind == "cpu":
        return "float32"
    return "float16" if device.capability is not None and device.capability < (8, 0) else "bfloat16"
