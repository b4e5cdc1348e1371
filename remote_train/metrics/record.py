"""The metric record of DESIGN §9: one per step line, and its form in JSON; `host`, `run_time` and `superseded` are of the curve."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class MetricRecord:
    """One step's figures; unknown is None, never 0 or infinite. Rates and peaks are of the whole run, all devices.

    Records of the source `meter` have no `step`: the script's own count may differ, and go on over attempts.
    """

    attempt: int
    step: int | None = None
    time: float | None = (
        None  # seconds since the attempt's start, by the host's monotonic clock where it is known
    )
    wall_time: float | None = None  # seconds since the epoch
    loss: float | None = None
    step_seconds: float | None = None
    tokens_per_second: float | None = None
    flops_per_second: float | None = None
    devices: int | None = None
    mfu: float | None = None  # fraction
    peak_flops: float | None = None  # FLOP/s
    peak_source: str | None = None
    dtype: str | None = None
    dtype_source: str | None = None
    reported_mfu: float | None = None  # fraction, as the script printed it, of whatever it divides by
    source: str = "log:generic"
    host: str | None = None
    run_time: float | None = (
        None  # seconds since the first attempt was started, by wall clocks: goes on over all attempts
    )
    superseded: bool = False  # a later attempt went on from before it
    optimizer_step: int | None = (
        None  # optimizer steps of the attempt, counted by the meter, or by report where the script does not say
    )
    flops_source: str | None = (
        None  # how the meter knows the FLOPs: "counted", or "6N" where it could not count
    )
    steps: int | None = None  # how many steps its pace is the mean of, where the source says that

    def as_json(self) -> dict[str, object]:
        """Give every field; a float that JSON cannot hold becomes None."""
        return {key: None if _is_unwritable(value) else value for key, value in asdict(self).items()}


def _is_unwritable(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
