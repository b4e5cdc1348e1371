"""When a window of steps ends, when a step is looked at closely, and when the FLOPs are counted."""

from __future__ import annotations

WINDOW_STEPS = 16384  # the moments of so many steps are kept at most
FIRST_SAMPLES = 4  # steps 2 to 5
UNEVEN_SAMPLES = 28  # steps 2 to 29, if the first of them are not alike
SAMPLE_STEPS = 64  # then less than one in so many is looked at
FIRST_SHARE = 0.005  # nor so often that looking takes more of the time than this in the first two minutes
SAMPLE_SHARE = 0.001  # and than this later
COUNT_SECONDS = 2.0  # steps so slow that the first samples take longer are counted with fewer
PAUSE_SECONDS = 2.0  # what counting may take in all
LATER_SECONDS = 0.25  # what a kind of call met later may take of it at most, going by the quickest before
LOOK_SHARE = 0.01  # of the run, for looks at all objects
LEVELS = 4  # how far below the outermost modules a call is looked for


_PRIMES = (
    (67, 131, 257, 521, 1031, 2053, 4099, 8209, 16411, 32771),
    (73, 137, 263, 523, 1033, 2063, 4111, 8219, 16417, 32779),
)


def window_seconds(age: float) -> float:
    """Return how long a window lasts, given the seconds since the first step: long runs need fewer lines."""
    if age < 120.0:
        return 1.0
    return 5.0 if age < 3600.0 else 10.0


def next_sample_step(
    step: int, samples: int, step_seconds: float, apart: float, *, uneven: bool = False
) -> int:
    """Return the step after which the next look begins, `apart` seconds at least after the one that has just ended.

    The first ones follow each other, and are more if they were `uneven`. Later ones are a prime number of steps apart,
    for a while the same: of a pattern of any other length, such as 4, 4 and 2 micro-batches, they meet each part as often.
    """
    if samples < (UNEVEN_SAMPLES if uneven else FIRST_SAMPLES):
        return step
    many = int(min(apart / step_seconds, 1e9)) if step_seconds > 0 else 0
    primes = _PRIMES[(step >> 10) % len(_PRIMES)]
    return step - 1 + next((prime for prime in primes if prime >= many), many)


def sample_seconds(age: float, cost: float) -> float:
    """Return how far apart looks should be at an age of the run, given what one takes of ours."""
    if age < 120.0:
        return cost / FIRST_SHARE
    return max(window_seconds(age), cost / SAMPLE_SHARE)


def is_time_to_count(samples: int, seconds: float) -> bool:
    """Tell whether enough steps have been looked at, given the seconds since the first step."""
    return samples >= FIRST_SAMPLES or (samples >= 1 and seconds >= COUNT_SECONDS)
