"""No core file of a process of ours that holds a secret: it would be a copy of its memory on a disk."""

from __future__ import annotations

import resource

_limits = resource.getrlimit(resource.RLIMIT_CORE)


def forbid_core() -> None:
    """Ask for no core file of this process, and of those it starts unless they undo that: later runs' supervisors too."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, _limits[1]))


def allow_core() -> None:
    """Have it as it was: a training's core file is its user's."""
    resource.setrlimit(resource.RLIMIT_CORE, _limits)
