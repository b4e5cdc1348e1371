"""Whether a host can run a job, and what it is like in one line: said before anything is sent there. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from remote_train.graphics import explain_no_cuda
from remote_train.host.turns import is_foreign_busy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remote_train.config.host_spec import HostSpec

LEAST_DRIVERS = {11: 450, 12: 525, 13: 580}
"""CUDA major -> major of the oldest driver that runs all of its minor versions.

Source: NVIDIA, CUDA Compatibility, "Minor Version Compatibility", table 1 (docs.nvidia.com/deploy/cuda-compatibility).
"""
LOW_DISK = 1_000_000_000
"""Bytes free below which a host is warned of."""
SKEW_SECONDS = 120.0
"""How far a host's clock may be from ours before it is said."""
_MAJOR = re.compile(r"(\d{1,4})(?:\.(\d+))?")


def find_unfit(host: HostSpec, facts: Mapping[str, Any]) -> str | None:
    """Return why this host cannot run a job of its device, None when it can."""
    return _find_python_fault(host, facts["python"]) or (
        _find_cuda_fault(host, facts) if host.device == "cuda" else None
    )


def _find_python_fault(host: HostSpec, python: Mapping[str, Any]) -> str | None:
    if python.get("version") is None:
        if host.conda and str(python["path"]).startswith("conda:"):
            return str(python.get("error"))
        return f"its Python {python['path']} does not work: {python.get('error') or 'not found'}"
    if python.get("torch") is None:
        if host.uv:
            return f"the environment that uv made for this project (Python {python['version']}) has no torch"
        return f"{python['path']} (Python {python['version']}) has no torch"
    return None


def _find_cuda_fault(host: HostSpec, facts: Mapping[str, Any]) -> str | None:
    python = facts["python"]
    if not facts["gpus"]:
        return f"no CUDA device: {explain_no_cuda(facts)}"
    if python.get("torch_cuda") is None:
        return f"torch {python['torch']} in {python['path']} is built without CUDA"
    return None if may_bring_cuda(host) else find_driver_fault(facts)


def may_bring_cuda(host: HostSpec) -> bool:
    """Tell whether the training may find another libcuda than NVML was asked by: one of CUDA's forward compatibility packages.

    Source: NVIDIA, CUDA Compatibility, "Forward Compatibility": on data-centre cards it runs a newer major on an older driver.
    """
    return bool(host.setup) or "LD_LIBRARY_PATH" in host.env


def find_driver_fault(facts: Mapping[str, Any]) -> str | None:
    """Return why the driver cannot run what torch was built for, None when it can or nobody knows.

    Within one CUDA major every driver of it will do; one of an older major will not.
    """
    built, runs = _parse_major(facts["python"].get("torch_cuda")), _parse_major(facts.get("driver_cuda"))
    driver = _parse_major(facts.get("driver"))
    least = LEAST_DRIVERS.get(built or 0)
    if built is None or (runs is None and (driver is None or least is None)):
        return None
    if runs is not None and runs >= built:
        return None
    if runs is None and driver is not None and least is not None and driver >= least:
        return None
    python = facts["python"]
    at_most = "" if runs is None else f" runs CUDA {facts['driver_cuda']} at most"
    needed = f"driver {least} or newer" if least else "a newer driver"
    return (
        f"torch {python['torch']} is built for CUDA {python['torch_cuda']}, and its NVIDIA driver "
        f"{facts.get('driver') or 'of unknown version'}{at_most or ' is too old for that'}: "
        f"it needs {needed}, or a torch built for {f'CUDA {runs}' if runs else 'an older CUDA'}"
    )


def render_verdict(host: str, device: str, facts: Mapping[str, Any], *, fresh: bool) -> str:
    """Return what a host is like, in one line; who uses its GPUs and what is free only of a `fresh` look."""
    python = facts["python"]
    parts = [f"Python {_shorten(python.get('version'))}"]
    if python.get("torch"):
        cuda = f" (CUDA {python['torch_cuda']})" if python.get("torch_cuda") else " (CPU)"
        parts.append(f"torch {_shorten(python['torch'])}{cuda}")
    if device == "cuda":
        parts += [_render_driver(facts), *_render_gpus(facts["gpus"], fresh=fresh)]
    else:
        parts.append(f"{facts['cpu']['usable']} cores of {facts['cpu']['model']}")
    free = facts.get("disk_free_bytes")
    if fresh and isinstance(free, int):
        parts.append(f"{free / 1e9:.0f} GB free" if free >= 1e10 else f"{free / 1e9:.1f} GB free")
    return f"{host}: " + ", ".join(part for part in parts if part)


def find_warnings(spec: HostSpec, facts: Mapping[str, Any], now: float | None) -> list[str]:
    """Return what a person should hear of a host that was just looked at; `now`: this machine's clock at that moment."""
    host, warnings = spec.name, []
    if spec.device == "cuda" and facts["gpus"] and may_bring_cuda(spec):
        fault = find_driver_fault(facts)
        warnings += (
            [f"{host}: {fault}; unless `setup` or `env` bring CUDA's compatibility libraries"]
            if fault
            else []
        )
    free, theirs = facts.get("disk_free_bytes"), facts.get("now")
    if isinstance(free, int) and free < LOW_DISK:
        warnings.append(f"{host}: {free / 1e6:,.0f} MB are free where its runs are kept")
    if now is not None and isinstance(theirs, (int, float)) and abs(theirs - now) > SKEW_SECONDS:
        ahead = "ahead of" if theirs > now else "behind"
        minutes = abs(theirs - now) / 60
        span = f"{minutes:,.0f} minutes" if minutes < 120 else f"{minutes / 60:,.0f} hours"
        warnings.append(
            f"{host}: its clock is {span} {ahead} this machine's: "
            "downloads there may fail (TLS), and its times are wrong"
        )
    return warnings


def _render_driver(facts: Mapping[str, Any]) -> str:
    if not facts.get("driver"):
        return ""
    runs = f" (CUDA {facts['driver_cuda']})" if facts.get("driver_cuda") else ""
    return f"driver {_parse_major(facts['driver'])}{runs}"


def _render_gpus(gpus: list[Any], *, fresh: bool) -> list[str]:
    """Return a part for each kind of GPU: how many, and how many of them are free."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for gpu in gpus:
        kinds.setdefault(str(gpu.get("name") or "GPU"), []).append(gpu)
    parts = []
    for name, cards in kinds.items():
        short = name.removeprefix("NVIDIA ").removeprefix("GeForce ")
        free = sum(1 for card in cards if not is_foreign_busy(card))
        many = f"{len(cards)} x {short}" if len(cards) > 1 else short
        state = "" if not fresh else f" {free} free" if len(cards) > 1 else " free" if free else " in use"
        parts.append(many + state)
    return parts


def _parse_major(version: object) -> int | None:
    match = _MAJOR.match(version) if isinstance(version, str) else None
    return int(match.group(1)) if match else None


def _shorten(version: object) -> str:
    """Return major and minor of a version."""
    match = _MAJOR.match(str(version))
    return match.group(0) if match else str(version)
