"""`explain` as text, and the lines of telemetry that `show` has. Plain mappings in, lines out; what is unknown is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from remote_train.metrics.figures import render_mfu
from remote_train.metrics.wording import render_gain, render_rate, render_share, render_time
from remote_train.show.neutral import neutral_text
from remote_train.show.words import get_number, render_bytes, render_count

if TYPE_CHECKING:
    from collections.abc import Sequence

Row = Mapping[str, object]

BAR = 30
_PHASES = {
    "data": "waiting for data",
    "forward": "forward",
    "backward": "backward",
    "optimizer": "optimizer",
    "other": "other",
    "eval": "evaluation",
    "save": "checkpoints",
}
_FLOORS = {"matmul": "matrix products", "memory": "memory", "launch": "launching"}


def render_explanation(found: Row) -> str:
    """Return an explanation (`Explanation.as_json`) as text: the sentence, where time goes, floors, what to try."""
    lines = [_text(found.get("sentence"))]
    lines += [f"({_text(note)})" for note in _items(found.get("notes"))]
    parts = {
        "Step": list_step_lines(found),
        "Where the time goes": list_share_lines(_table(found.get("shares"))),
        "Floors of a step: it cannot take less": list_floor_lines(found),
        "Host": list_use_lines(_table(found.get("telemetry"))),
        "What to try": list_try_lines(found),
    }
    for title, part in parts.items():
        lines += ["", title, *(f"  {line}" for line in part)] if part else []
    return "\n".join(lines) + "\n"


def list_step_lines(found: Row) -> list[str]:
    """Return step time, rate and MFU with its denominator."""
    profile, device = _table(found.get("profile")), _table(found.get("device"))
    step = get_number(found, "step_seconds")
    if step is None:
        return []
    parts = [f"{render_time(step)} a step"]
    tokens, flops, mfu = (
        get_number(row, key)
        for row, key in ((profile, "tokens_per_second"), (profile, "flops_per_second"), (found, "mfu"))
    )
    parts += [] if tokens is None else [f"{render_count(tokens)} tok/s"]
    parts += [] if flops is None else [render_rate(flops)]
    if mfu is not None:
        peak, source = get_number(device, "peak"), device.get("peak_source")
        parts.append(f"MFU {render_mfu(mfu)} of {render_rate(peak or 0.0)} ({_text(source)})")
    processes = get_number(device, "processes") or 1
    return [" · ".join(parts) + (f" (each of {processes:.0f} processes)" if processes > 1 else "")]


def list_share_lines(shares: Row) -> list[str]:
    """Return a bar for each part of the time."""
    known = {key: get_number(shares, key) or 0.0 for key in _PHASES if get_number(shares, key)}
    if set(known) == {"other"}:
        return []  # nothing is known but that it is all
    width = max((len(_PHASES[key]) for key in known), default=0)
    return [
        f"{_PHASES[key].ljust(width)}  {render_share(share):>11}  {'#' * max(1, round(share * BAR))}"
        for key, share in known.items()
    ]


def list_floor_lines(found: Row) -> list[str]:
    """Return each floor, its share of the step, and what it rests on."""
    step = get_number(found, "step_seconds") or 0.0
    rows = [(row, get_number(row, "seconds")) for row in _rows(found.get("floors"))]
    return [
        f"{_FLOORS.get(str(row.get('name')), '?'):<15}  {render_time(seconds):>8}  {render_share(seconds / step):>6}  {_text(row.get('basis'))}"
        for row, seconds in rows
        if seconds is not None and step > 0
    ]


def list_try_lines(found: Row) -> list[str]:
    """Return what to try with its gain, how, and what the prediction rests on."""
    lines = []
    for row in _rows(found.get("tries")):
        gain = row.get("gain")
        ends = (
            [float(end) for end in gain if isinstance(end, int | float)]
            if isinstance(gain, list | tuple)
            else []
        )
        words = render_gain((ends[0], ends[1]) if len(ends) == 2 else None)
        lines.append(f"{_text(row.get('name'))}: {words}")
        lines.append(f"    how    {_text(row.get('how'))}")
        lines.append(f"    rests  {_text(row.get('basis'))}")
        lines += [f"    but    {_text(row['caution'])}"] if row.get("caution") else []
    return lines


def list_use_lines(use: Row) -> list[str]:
    """Return a line for the processor and memory of a host, and one for each GPU."""
    line = " · ".join([*_list_cpu(use), *_list_memory(use)])
    return [*([line] if line else []), *(_render_gpu(gpu) for gpu in _rows(use.get("gpus")))]


def _list_cpu(use: Row) -> list[str]:
    busy, run, mhz, celsius = (get_number(use, key) for key in ("busy", "run", "mhz", "celsius"))
    parts = [] if busy is None else [f"CPU {render_share(busy)} busy"]
    parts += [] if run is None else [f"the run takes {run:.1f} CPUs"]
    parts += [] if mhz is None else [f"{mhz:.0f} MHz"]
    parts += [] if celsius is None else [f"{celsius:.0f} C"]
    throttled = get_number(use, "throttled")
    return parts + ([f"held down by heat in {render_share(throttled)} of the samples"] if throttled else [])


def _list_memory(use: Row) -> list[str]:
    used, total, run = (get_number(use, f"memory_{key}") for key in ("used", "total", "run"))
    parts = [] if used is None or total is None else [f"memory {render_bytes(used)} of {render_bytes(total)}"]
    return parts + ([f"the run's {render_bytes(run)}"] if run else [])


def _render_gpu(gpu: Row) -> str:
    load, memory, watts, limit = (
        get_number(gpu, key) for key in ("utilization", "memory_used", "watts", "watt_limit")
    )
    mhz, celsius, others = (get_number(gpu, key) for key in ("sm_mhz", "celsius", "others"))
    parts = [] if load is None else [f"a kernel ran {render_share(load)} of the time"]
    parts += [] if memory is None else [f"{render_bytes(memory)} in use"]
    parts += [] if watts is None else [f"{watts:.0f} W" + ("" if limit is None else f" of {limit:.0f}")]
    parts += [] if mhz is None else [f"{mhz:.0f} MHz"]
    parts += [] if celsius is None else [f"{celsius:.0f} C"]
    held = _list_reasons(_table(gpu.get("throttle")))
    parts += [f"held down by {', '.join(held)}"] if held else []
    parts += [f"other processes: {others:.0f}"] if others else []
    return f"GPU {_text(gpu.get('index'))}: " + " · ".join(parts)


def _list_reasons(throttle: Row) -> list[str]:
    """Return why the clock was held down, without the reasons that hold nothing down."""
    shares = {word: get_number(throttle, word) or 0.0 for word in throttle}
    return [
        f"{_text(word)} ({render_share(share)} of the samples)"
        for word, share in sorted(shares.items(), key=lambda item: -item[1])
        if share >= 0.05 and word != "idle"
    ]


def _table(value: object) -> Row:
    return value if isinstance(value, Mapping) else {}


def _rows(value: object) -> list[Row]:
    return [row for row in _items(value) if isinstance(row, Mapping)]


def _items(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()


def _text(value: object) -> str:
    return "?" if value is None else neutral_text(str(value))
