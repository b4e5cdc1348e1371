"""When a window of steps ends, when a step is looked at closely, and when the FLOPs are counted."""

from __future__ import annotations

WINDOW_STEPS = 16384  # the moments of so many steps are kept at most
FIRST_SAMPLES = 4  # steps 2 to 5
SAMPLE_STEPS = 100  # then at most one in so many is looked at
SAMPLE_SHARE = 0.001  # nor so often that looking takes more of the time than this
COUNT_SECONDS = 2.0  # steps so slow that the first samples take longer are counted with fewer
PAUSE_SECONDS = 2.0  # what counting may take in all
LEVELS = 4  # how far below the outermost modules a call is looked for


def window_seconds(age: float) -> float:
    """Return how long a window lasts, given the seconds since the first step: long runs need fewer lines."""
    if age < 120.0:
        return 1.0
    return 5.0 if age < 3600.0 else 10.0


def next_sample_step(step: int, samples: int, step_seconds: float, apart: float) -> int:
    """Return the step after which the next look begins, `apart` seconds at least after the one that has just ended.

    Never the same distance twice in turn, lest it meet only the steps that log or save.
    """
    if samples < FIRST_SAMPLES:
        return step
    many = int(min(apart / step_seconds, 1e9)) if step_seconds > 0 else 0
    return step + max(SAMPLE_STEPS, many) + (step * 7) % 13


def sample_seconds(age: float, cost: float) -> float:
    """Return how far apart looks should be at an age of the run, given what one takes of ours."""
    return max(window_seconds(age), cost / SAMPLE_SHARE)


def is_time_to_count(samples: int, seconds: float) -> bool:
    """Tell whether enough steps have been looked at, given the seconds since the first step."""
    return samples >= FIRST_SAMPLES or (samples >= 1 and seconds >= COUNT_SECONDS)
