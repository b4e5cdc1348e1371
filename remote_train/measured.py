"""What a host may say of its devices, its surroundings, and what it measured: the part of answers.py that `bench` and `doctor` are about."""

from __future__ import annotations

from remote_train.metrics.denominator import MEASURED
from remote_train.shapes import Malformed, flag, items, maybe, named, number, scalar, table, text, whole

LATEST = 2.5e11
"""Seconds since 1970; a later year than 9999 is none."""

MOMENT = number(0, LATEST)
BANDWIDTH = number(1.0, 1e18)


def capability(value: object) -> None:
    """Accept a compute capability, major and minor; an empty list is an unknown one."""
    items(whole(0, 1000), 2)(value)
    if isinstance(value, list) and len(value) == 1:
        raise Malformed("one number instead of two")


_GPU_USER = table(
    {"pid": whole()},
    {**dict.fromkeys(("compute", "draws"), flag), "memory_bytes": maybe(whole())},
)
GPU = table(
    {},
    {
        "index": whole(0, 1 << 16),
        "uuid": text(256),
        "name": maybe(text(256)),
        "sm_count": maybe(whole(0, 1 << 20)),
        "clock_mhz": maybe(whole(0, 1 << 20)),
        "capability": maybe(capability),
        **dict.fromkeys(("memory_bytes", "memory_used_bytes"), maybe(whole())),
        "bandwidth": maybe(BANDWIDTH),
        "processes": maybe(items(_GPU_USER, 4096)),
    },
)

ADAPTER = table(
    {"vendor": text(256), "kind": text(32)},
    {
        **dict.fromkeys(("name", "chip", "note", "driver"), maybe(text(256))),
        **dict.fromkeys(("id", "slot", "gfx"), maybe(text(64))),
        **dict.fromkeys(("mobile", "primary"), flag),
        "memory_bytes": maybe(whole()),
        "cores": maybe(whole()),
    },
)
_AROUND = table(
    {},
    {
        "container": maybe(text(32)),
        **dict.fromkeys(("wsl", "virtual", "laptop", "dxg", "systemd"), flag),
        "nvidia_nodes": whole(0, 1 << 16),
    },
)
_USER = table({}, dict.fromkeys(("account", "process"), maybe(text(256))))
examined = table(
    {"surroundings": _AROUND},
    {
        "memory": table({}, dict.fromkeys(("total", "available"), maybe(whole()))),
        "load": number(0, 1e6),
        "account": text(256),
        "shell": text(256),
        "kills": maybe(flag),
        "lingers": flag,
        "users": named(_USER, 256, text(24)),
    },
)


_QUEUED_USER = table(
    {"gpu": whole(0, 1 << 16)},
    {
        **dict.fromkeys(("run", "account", "process"), maybe(text(64))),
        **dict.fromkeys(("pid", "memory_bytes"), maybe(whole())),
        "since": maybe(MOMENT),
    },
)
queued = table(
    {"place": whole(1, 1 << 20), "of": whole(1, 1 << 20)},
    {
        "gpus": items(whole(0, 1 << 16), 1024),
        "count": whole(0, 1 << 16),
        "ahead": items(table({"run": text(64), "since": MOMENT}), 64),
        "users": items(_QUEUED_USER, 64),
        "why": maybe(text(256)),
    },
)
"""Why an attempt waits for GPUs: see host/gpu_users.py."""


def peak(value: object) -> None:
    """Accept a measured peak: rates by dtype and what they were measured with."""
    table({}, {"shapes": named(maybe(whole()), 64, text(64))})(value)
    plain = {key: item for key, item in dict(value).items() if key != "shapes"}  # type: ignore[call-overload]  # just checked
    named(scalar, 64, text(64))(plain)
    rates = {key: rate for key, rate in plain.items() if key.startswith(MEASURED)}
    named(maybe(number(1.0, 1e21)), 64, text(64))(rates)
    rest = {"threads": maybe(whole(1, 1 << 20)), "until": maybe(MOMENT)}
    table({}, {**rest, "bandwidth": maybe(BANDWIDTH), "dispatch": maybe(number(1e-12, 1e3))})(value)


def _named_gpu(value: object) -> None:
    table({"uuid": text(256)})(value)
    GPU(value)


_PEAK = table({"peak": peak}, {"gpu": maybe(_named_gpu), "load": maybe(number(0, 1e6))})
_FIGURES = table(
    {
        "step_seconds": number(1e-9, 1e6),
        "steps": whole(1, 1 << 40),
        "parameters": whole(1, 1 << 40),
        "dtype": text(32),
        "meter": items(text(8192), 1000),
    },
    {
        "losses": items(maybe(number(-1e9, 1e9)), 2),
        "torch": text(256),
        "threads": whole(1, 1 << 20),
    },
)


def benched(value: object) -> None:
    """Accept the peak of a device, or the figures of a model that was trained."""
    (_PEAK if isinstance(value, dict) and "peak" in value else _FIGURES)(value)
