"""The meter's life in a training's process, from its first optimizer step to its end."""

from __future__ import annotations

import atexit
import os

from .guard import Guard
from .lines import Lines, open_lines
from .meter import Meter
from .patches import HookSlot
from .phases import install

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Optional


def begin(torch: Any, optimizer: Any, before: Any, after: Any) -> Optional[Meter]:  # noqa: ANN401  (torch's)
    """Live from this optimizer step on; `before` and `after` are the handles of our two hooks on every step.

    None is returned where there is nothing to live for: another process writes the file.
    """
    slots = HookSlot(before), HookSlot(after)
    guard = Guard(lambda _why: None)
    for slot in slots:
        guard.undo(slot.clear)
    meter: Optional[Meter] = guard.run("begin", _begin, torch, optimizer, guard, *slots)
    return meter


def _begin(torch: Any, optimizer: Any, guard: Guard, before: HookSlot, after: HookSlot) -> Optional[Meter]:  # noqa: ANN401
    lines = open_lines()
    if lines is None:
        guard.switch_off(None)
        return None
    guard.tell = lambda why: lines.write("off", {"why": why})
    meter = Meter(torch, optimizer, guard, lines, before)
    install(torch, meter.phases, guard, meter.count_steps)
    after.put(meter.after_step)
    os.register_at_fork(after_in_child=lambda: _leave(guard, lines))
    atexit.register(guard.run, "exit", meter.close)
    meter.begin(optimizer)
    return meter


def _leave(guard: Guard, lines: Lines) -> None:
    """Be nothing in a forked child, such as a DataLoader's worker: it is not the training."""
    guard.switch_off(None)
    lines.close()


def refuse(why: str) -> None:
    """Say why there is no meter."""
    lines = open_lines()
    if lines is not None:
        lines.write("off", {"why": why})
        lines.close()
