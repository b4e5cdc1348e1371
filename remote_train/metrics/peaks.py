"""Which peak an MFU is divided by, and where that figure is from. Facts of a device in, one Peak or None out.

In order: the user's own figure from hosts.toml; the table; live SM count x clock x rate of the chip's class, for laptop
parts, MIG slices, cards that are not what their row says, and names that the table does not know; a measured matmul.
Never another device's row: unknown is None.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from remote_train.metrics.peak_table import BY_CAPABILITY, FP32_ONLY, TABLE, Rates, Row

if TYPE_CHECKING:
    from collections.abc import Mapping

_DTYPES = {
    "float32": "fp32",
    "float": "fp32",
    "tfloat32": "tf32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
    "float8": "fp8",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8",
}
_SPELLED = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8": "float8"}
# Power-limited parts that share the desktop card's name and have other SM counts and clocks.
_LAPTOP = re.compile(r"\bLaptop\b|\bwith Max-Q Design\b|\bMobile\b", re.IGNORECASE)
_MIG = re.compile(r"\bMIG\b")
# A card's own boost clock this far below its row's is another card of that name, or one held back: the live clock counts.
# Above the row's it does not: the driver tells a data centre card's highest clock, and cards are sold overclocked.
_HELD_BACK = 0.9
_WITHOUT_BF16 = (8, 0)  # before this compute capability bf16 and TF32 have no tensor cores


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What the host says about the devices of one attempt, all alike; `count` of them."""

    kind: Literal["cuda", "cpu"]
    name: str
    sm_count: int | None = None
    clock_mhz: int | None = (
        None  # the driver's clock rate: the boost; NVML's maximum is up to 20 % above it on GeForce
    )
    capability: tuple[int, int] | None = None
    count: int = 1


@dataclass(frozen=True, slots=True)
class Peak:
    """Dense FLOP/s of one device, where the figure is from, and the device's name."""

    flops: float
    source: str
    name: str = ""


def parse_dtype(text: str) -> str:
    """Give the short name (fp32, tf32, fp16, bf16, fp8) of a dtype spelled as torch or the user does."""
    plain = text.strip().lower().removeprefix("torch.")
    return _DTYPES.get(plain, plain)


def choose_peak(
    device: DeviceFacts,
    dtype: str,
    *,
    overrides: Mapping[str, float] | None = None,
    measured: Mapping[str, float] | None = None,
    threads: int | None = None,
    shapes: Mapping[str, int] | None = None,
) -> Peak | None:
    """Choose the peak of one device for `dtype`; None when nothing trustworthy is known.

    `overrides` are hosts.toml's `peak_tflops`, in TFLOP/s; `measured` is the best matmul in FLOP/s by dtype, with
    `threads` CPU threads and matrices of `shapes` rows. All may spell the dtypes in any way.
    """
    key = _resolve(device, dtype)
    own = _pick(overrides, key)
    if own is not None:
        return Peak(own * 1e12, f"hosts.toml: {own:g} TFLOP/s for {key}", device.name)
    if device.kind == "cuda":
        peak = _choose_datasheet(device, key)
        if peak is not None:
            return peak
    return _choose_measured(device, key, measured, threads, _pick(shapes, key))


def explain_missing_peak(device: DeviceFacts, dtype: str) -> str:
    """Say why `choose_peak` found nothing, and what would help."""
    key = _resolve(device, dtype)
    why = f"{device.name} is not in the table"
    if device.kind == "cpu":
        why = "no table gives a CPU's peak"
    elif _has_no_units(device, key):
        why = f"{device.name} has no {key} tensor cores, {key} is emulated there"
    return f"{why}; `remote-train bench` measures one, `peak_tflops` in hosts.toml states one"


def _choose_datasheet(device: DeviceFacts, key: str) -> Peak | None:
    rows = [row for row in TABLE if row.matches(device.name)]
    if _LAPTOP.search(device.name):
        return _compute_live(device, key, None, "laptop part")
    if not rows:
        return _compute_live(device, key, None, "not in the table")
    rows = [row for row in rows if row.name == rows[0].name]
    if _MIG.search(device.name):
        return _compute_slice(device, key, rows[0])
    fits = [row for row in rows if device.sm_count in {None, row.sms} or row.sms is None]
    if fits:
        return _choose_row(device, key, fits[0])
    if device.sm_count and rows[0].sms and device.sm_count < rows[0].sms / 2:
        return _compute_slice(device, key, rows[0])
    return _compute_live(device, key, rows[0], f"the table's {rows[0].label} has {rows[0].sms}")


def _choose_row(device: DeviceFacts, key: str, row: Row) -> Peak | None:
    """Give the row's figure, less what the card's own boost clock is below the row's."""
    flops, clock = row.peak(key), device.clock_mhz
    if flops is None or not clock or not row.mhz or clock >= _HELD_BACK * row.mhz:
        return _make_peak(device, key, flops, f"table: {{name}}, {{figure}}; {row.source.short}")
    how = f"computed: {{name}} at {clock} MHz (the table's {row.label} has {row.mhz}), {{figure}}"
    return _make_peak(device, key, flops * clock / row.mhz, how)


def _compute_slice(device: DeviceFacts, key: str, row: Row) -> Peak | None:
    """Give a slice its share of the whole device; nothing when the SM count is not that of a slice."""
    whole = row.peak(key)
    if whole is None or not device.sm_count or not row.sms or device.sm_count >= row.sms:
        return None
    how = f"computed: {device.sm_count} of {row.sms} SMs of {{name}}, {{figure}}"
    return _make_peak(device, key, whole * device.sm_count / row.sms, how)


def _compute_live(device: DeviceFacts, key: str, row: Row | None, why: str) -> Peak | None:
    """Multiply SM count, clock and rate; a row of the same name lends clock and rates when it has them."""
    rates = row.rates if row and row.rates else _choose_rates(device)
    clock = device.clock_mhz or (row.mhz if row else None)
    if not device.sm_count or not clock or key not in rates:
        return None
    flops = device.sm_count * clock * 1e6 * rates[key]
    how = f"computed: {{name}}, {device.sm_count} SMs x {clock} MHz x {rates[key]} ({why}), {{figure}}"
    return _make_peak(device, key, flops, how)


def _choose_rates(device: DeviceFacts) -> Rates:
    if device.capability is None:
        return {}
    if "GTX" in device.name and device.capability < _WITHOUT_BF16:
        return FP32_ONLY if device.capability != (7, 5) else {"fp32": 128}
    geforce, other = BY_CAPABILITY.get(device.capability, ({}, {}))
    return geforce if "GeForce" in device.name else other


def _make_peak(device: DeviceFacts, key: str, flops: float | None, how: str) -> Peak | None:
    if flops is None:
        return None
    figure = f"{key}, dense" if key == "fp32" else f"{key}, FP32 accumulate, dense"
    return Peak(flops, how.format(name=device.name, figure=figure), device.name)


def _choose_measured(
    device: DeviceFacts,
    key: str,
    measured: Mapping[str, float] | None,
    threads: int | None,
    shape: float | None,
) -> Peak | None:
    flops = _pick(measured, key)
    if flops is None:
        return None
    size = f"{shape:.0f}x{shape:.0f} " if shape else ""  # slow devices are given smaller matrices
    parts = [f"measured: {size}matmul", _SPELLED.get(key, key)]
    if threads is not None:
        parts.append(f"{threads} thread{'s' if threads != 1 else ''}")
    if device.kind == "cuda" and _has_no_units(device, key):
        parts.append(f"emulated: {device.name} has no {key} tensor cores")
    return Peak(flops, ", ".join(parts), device.name)


def _resolve(device: DeviceFacts, dtype: str) -> str:
    """Give the arithmetic that a dtype runs as: "TF32 allowed" means plain fp32 where there is no TF32."""
    key = parse_dtype(dtype)
    return "fp32" if key == "tf32" and (device.kind == "cpu" or _is_before_ampere(device)) else key


def _is_before_ampere(device: DeviceFacts) -> bool:
    if device.capability is not None:
        return device.capability < _WITHOUT_BF16
    row = next((row for row in TABLE if row.matches(device.name)), None)
    return row is not None and bool(row.rates) and "bf16" not in row.rates


def _has_no_units(device: DeviceFacts, key: str) -> bool:
    return device.kind == "cuda" and key == "bf16" and _is_before_ampere(device)


def _pick(figures: Mapping[str, float] | None, key: str) -> float | None:
    for dtype, value in (figures or {}).items():
        if parse_dtype(dtype) == key and value > 0:
            return value
    return None
