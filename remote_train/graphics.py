"""What is said of a host's processor and graphics devices, from its facts: names, kinds, and why none of them is a CUDA device.

Pure. A device that is not NVIDIA's, or that NVIDIA's driver does not list, never makes a host fit for CUDA. torch built for
ROCm calls AMD's GPUs cuda too; which of them are free, and who uses them, only NVML tells us so far, so they are not used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

COMPUTE = ("discrete", "integrated", "unknown")
"""Kinds of devices that may compute; the others draw a server's or a virtual machine's screen."""


def name_adapter(row: Mapping[str, Any]) -> str:
    """Return a device as people call it: vendor, product, chip, kind, driver, and what is wrong with it."""
    vendor, name = str(row.get("vendor") or ""), str(row.get("name") or row.get("id") or "GPU")
    title = name if name.startswith(vendor) else f"{vendor} {name}"
    about = [str(row["chip"])] if row.get("chip") else []
    kind = row.get("kind")
    about += [] if kind == "unknown" or not kind else [f"{kind}, laptop" if row.get("mobile") else str(kind)]
    about += [str(row["gfx"])] if row.get("gfx") else []
    if row.get("note"):
        about.append(str(row["note"]))
    elif row.get("driver"):
        about.append(f"driver {row['driver']}")
    return f"{title} ({', '.join(about)})" if about else title


def explain_no_cuda(facts: Mapping[str, Any]) -> str:
    """Return why the host has no CUDA device: what NVML said, and which devices there are instead."""
    why = str(facts.get("gpu_error") or "none was found")
    rows = [row for row in facts.get("adapters") or [] if row.get("kind") in COMPUTE]
    nvidia = [row for row in rows if row.get("vendor") == "NVIDIA"]
    if nvidia:
        return f"{why}; on the bus: {', '.join(map(name_adapter, nvidia[:4]))}"
    if not rows:
        return why
    named = ", ".join(map(name_adapter, rows[:4]))
    return f"it has {named}, and no NVIDIA GPU; others are not supported yet"


def render_cores(cpu: Mapping[str, Any]) -> str:
    """Return the cores: "6 P + 8 E cores, 20 threads" of a hybrid processor, else "8 cores, 16 threads"."""
    physical, fast, logical = (cpu.get(key) for key in ("physical", "performance", "logical"))
    if physical and fast and fast < physical:
        cores = f"{fast} P + {physical - fast} E cores"
    else:
        cores = f"{physical} core{'' if physical == 1 else 's'}" if physical else ""
    threads = f"{logical} thread{'' if logical == 1 else 's'}" if logical and logical != physical else ""
    return ", ".join(part for part in (cores, threads) if part)


def render_cpu(cpu: Mapping[str, Any]) -> str:
    """Return the processor in a line: its model, its cores, and what of it a training may use."""
    limits = []
    if cpu.get("narrowed"):
        limits.append("this account may use some of its CPUs only")
    if cpu.get("quota"):
        limits.append(f"limited to {cpu['quota']:g} CPUs' time")
    if cpu.get("usable") and cpu.get("usable") != cpu.get("performance"):
        limits.append(f"a training gets {cpu['usable']}")
    return "; ".join(
        [", ".join(part for part in (str(cpu.get("model") or ""), render_cores(cpu)) if part), *limits]
    )
