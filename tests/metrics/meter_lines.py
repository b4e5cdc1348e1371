"""Lines of a meter and of telemetry, made for tests."""

from __future__ import annotations

import json
from typing import Any

SETTINGS = {
    "threads": 1,
    "compiled": False,
    "optimizer": "AdamW",
    "fused": None,
    "foreach": None,
    "workers": None,
    "amp": None,
    "tf32": False,
    "grad_scaler": False,
    "parameters_dtype": "float32",
}


def line(kind: str, **fields: Any) -> bytes:
    return json.dumps({"kind": kind, "time": 1.0, **fields}).encode() + b"\n"


def start(device: str = "cpu", pid: int = 7, **settings: Any) -> bytes:
    return line("start", format=1, pid=pid, rank=0, world=1, device=device, settings={**SETTINGS, **settings})


def count(**changes: Any) -> bytes:
    """The tiny GPT of the origin, by its own figures."""
    fields = {
        "step": 5,
        "flops": 4e9,
        "how": "counted",
        "why": None,
        "parameters": 800_000,
        "trainable": 800_000,
        "dtype": "float32",
        "dtype_source": "parameters",
        "kernels": 400,
        "bytes": 400e6,
        "tokens": 768,
        "shapes": 1,
    }
    return line("count", **{**fields, **changes})


def window(seconds: float = 1.0, steps: int = 20, **changes: Any) -> bytes:
    fields = {"steps": steps, "seconds": seconds, "eval": 0.0, "save": 0.0, "data": 0.0, "backwards": 1.0}
    fields["median"] = seconds / steps
    return line("steps", **{**fields, **changes})


def sample(**phases: Any) -> bytes:
    whole = {"forward": 15.0, "backward": 25.0, "optimizer": 8.0, "other": 2.0, "starved": None}
    return line("sample", **{**whole, **phases})


def host(**cpu: Any) -> bytes:
    fields = {"busy": 0.5, "run": 1.0, "mhz": 3000.0, "load": 1.0, "throttled": False, "celsius": 60.0}
    memory = {"used": 2e9, "total": 8e9, "run": 1e9}
    return line("sample", cpu={**fields, **cpu}, memory=memory, gpus=[])


def gpu_host(**gpu: Any) -> bytes:
    fields = {
        "uuid": "GPU-1",
        "index": 0,
        "utilization": 0.9,
        "memory_used": 1e9,
        "watts": 200.0,
        "watt_limit": 285.0,
        "watt_default": 285.0,
        "sm_mhz": 2600,
        "celsius": 60,
        "throttle": [],
        "others": 0,
    }
    return line("sample", cpu={}, memory={}, gpus=[{**fields, **gpu}])
