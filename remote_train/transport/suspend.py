"""How long this machine has been asleep: the difference of two clocks, one of which stops meanwhile.

Never the wall clock: it is set by hand and by the network, and its steps are no sleep.
"""

from __future__ import annotations

import time

# Linux's monotonic clock stops while the machine sleeps and the boot clock does not; on macOS it is the monotonic one
# that goes on, and the uptime that stops.
_PAIRS = (("CLOCK_BOOTTIME", "CLOCK_MONOTONIC"), ("CLOCK_MONOTONIC", "CLOCK_UPTIME_RAW"))
_PAIR = next(
    (
        (getattr(time, on), getattr(time, off))
        for on, off in _PAIRS
        if hasattr(time, on) and hasattr(time, off)
    ),
    None,
)


def read_suspended() -> float:
    """Return the seconds that this machine has slept since it was started, 0 where no pair of clocks tells."""
    if _PAIR is None:
        return 0.0
    on, off = _PAIR
    return time.clock_gettime(on) - time.clock_gettime(off)
