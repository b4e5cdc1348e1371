"""What a run in the queue for GPUs waits for, in words. Pure but for the time zone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NAMED = 3
"""Runs and users that a line names."""


def render_wait(wait: Mapping[str, Any], host: str) -> str:
    """Return the whole story: which GPUs, which place, who is before it, who has them, what else stands in the way."""
    place = f"place {wait['place']} of {wait['of']}"
    ahead = [f"{item['run']} (since {_render_time(item['since'])})" for item in wait.get("ahead") or []]
    behind = f", behind {_join(ahead)}" if ahead else ""
    users = list(dict.fromkeys(_render_user(user) for user in wait.get("users") or []))
    used = f"; in use by {_join(users)}" if users else ""
    why = f"; {wait['why']}" if wait.get("why") else ""
    return f"waiting for {_render_gpus(wait)} of {host}: {place}{behind}{used}{why}"


def render_place(wait: Mapping[str, Any]) -> str:
    """Return the state of such a run in two words."""
    return f"queued, place {wait['place']}"


def _render_gpus(wait: Mapping[str, Any]) -> str:
    gpus, count = wait.get("gpus") or [], wait.get("count") or 0
    named = f"GPU{'s' * (len(gpus) > 1)} {', '.join(map(str, gpus))}" if gpus else "GPUs"
    if 0 < count < len(gpus):
        return f"{'one' if count == 1 else count} of {named}"
    return named


def _render_user(user: Mapping[str, Any]) -> str:
    if user.get("run"):
        return f"{user['run']} (since {_render_time(user.get('since'))})"
    if user.get("pid") is None:
        return f"somebody who cannot be seen from there (GPU {user['gpu']})"
    what = f"{user['process']}, " if user.get("process") else ""
    return f"{user.get('account') or 'somebody'} ({what}pid {user['pid']})"


def _render_time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    then, now = time.localtime(seconds), time.localtime()
    return time.strftime("%H:%M" if then[:3] == now[:3] else "%d %b %H:%M", then)


def _join(words: Sequence[str]) -> str:
    more = len(words) - NAMED
    return ", ".join(words[:NAMED]) + (f" and {more} more" if more > 0 else "")
