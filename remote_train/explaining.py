"""Why a run is as fast as it is, from what lies here of its newest attempt: meter, telemetry, measured peak, output.

Only the beginning and the end of each mirror are read, so that a run of weeks costs no more than one of hours. Where the
meter saw nothing, the output's own step time and FLOPs are judged, and that is said.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from remote_train.attempts import newest_of, place_of
from remote_train.host import layout
from remote_train.metrics.denominator import choose_device_peak, choose_usual_dtype
from remote_train.metrics.diagnosis import Diagnosis, diagnose
from remote_train.metrics.floors import DeviceView
from remote_train.metrics.numbers import LONGEST_LINE, pick_count, pick_number
from remote_train.metrics.profile import Profile, parse_profile
from remote_train.metrics.telemetry import HostUse, parse_telemetry
from remote_train.watch import read_last_metric, read_pieces

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from remote_train.metrics.peaks import Peak
    from remote_train.metrics.record import MetricRecord
    from remote_train.records import Attempt, Run
    from remote_train.watch import Watch

HEAD_BYTES = 256 * 1024
TAIL_BYTES = 1024 * 1024
DTYPES = ("fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True)
class Explanation:
    """One attempt explained: what was found out, and what it was found out from."""

    run: str
    attempt: int
    host: str
    diagnosis: Diagnosis
    profile: Profile
    use: HostUse
    device: DeviceView | None
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Give everything as plain values, the diagnosis' own keys first."""
        whole = self.diagnosis.as_json()
        whole.update(run=self.run, attempt=self.attempt, host=self.host, notes=list(self.notes))
        whole["profile"] = {
            **asdict(self.profile),
            "flops_per_second": self.profile.flops_per_second,
            "tokens_per_second": self.profile.tokens_per_second,
        }
        return {
            **whole,
            "telemetry": asdict(self.use),
            "device": None if self.device is None else asdict(self.device),
        }


def explain_run(run: Run) -> Explanation:
    """Explain the newest attempt of a run from its records here."""
    record = run.read()
    number = newest_of(record)
    mirror = run.attempt(number)
    metric, watch = read_last_metric(number, mirror)
    profile = parse_profile(read_ends(mirror.output("meter")))
    use = read_use(mirror)
    place = place_of(record, number)[0]
    if watch is None:
        nothing = Diagnosis("unknown", "Its host has told nothing of this run yet.")
        return Explanation(run.id, number, place, nothing, profile, use, None)
    notes: tuple[str, ...] = ()
    if profile.step_seconds is None:
        filled = fill_from_output(profile, metric, watch.plan["processes"])
        notes = (explain_silence(profile, watch.plan, told=filled.step_seconds is not None),)
        profile = filled
    elif watch.metered.typical is not None:
        profile = settle_pace(profile, watch.metered.typical, watch.plan["processes"])
        if profile.off is not None:
            notes = (f"the meter has stopped: {profile.off}; what follows is from before",)
    if profile.why is not None:
        notes += (f"FLOPs {render_how(profile.how)}: {profile.why}",)
    device = make_view(watch, profile, read_bandwidth(mirror))
    found = diagnose(profile, device, use)
    return Explanation(run.id, number, place, found, profile, use, device, notes)


def read_use(mirror: Attempt) -> HostUse:
    """Return what the host of an attempt was doing, as its telemetry has it here."""
    return parse_telemetry(read_ends(mirror.output("telemetry")))


def render_how(how: str | None) -> str:
    """Say how FLOPs are known: `counted on real tensors`, `by 6N`, `not counted`."""
    return "not counted" if how is None else how if how.startswith("counted") else f"by {how}"


def explain_silence(profile: Profile, plan: Mapping[str, Any], *, told: bool) -> str:
    """Say why the meter timed no step; `told`: its output says how long a step takes."""
    why = "the meter has timed no step: too early, ended too soon, or no optimizer of torch"
    if plan.get("meter") is False:
        why = "no meter: it was started with --no-meter"
    elif profile.off is not None:
        why = f"no meter: {profile.off}"
    return why + ("; what follows is from its output" if told else "; and its output tells no step time")


def settle_pace(profile: Profile, typical: MetricRecord, processes: int) -> Profile:
    """Return a profile with the meter's typical pace, so that step time and MFU are those that `show` and `compare` have."""
    seconds, rate = typical.step_seconds, typical.flops_per_second
    flops = rate * seconds / processes if rate and seconds else profile.flops
    return replace(profile, step_seconds=seconds, flops=flops)


def fill_from_output(profile: Profile, metric: MetricRecord | None, processes: int) -> Profile:
    """Return a profile with step time, FLOPs and dtype of the newest metric of the output, where it has them."""
    if metric is None or not metric.step_seconds:
        return profile
    flops = metric.flops_per_second
    return replace(
        profile,
        step_seconds=metric.step_seconds,
        flops=flops * metric.step_seconds / processes if flops else None,
        dtype=metric.dtype,
        dtype_source=metric.dtype_source,
    )


def read_bandwidth(mirror: Attempt) -> float | None:
    """Return the bytes/s of the memory of the attempt's first GPU, as its driver states them."""
    gpus = (mirror.read(layout.ATTEMPT) or {}).get("gpus") or [{}]
    return pick_number(gpus[0], "bandwidth", 1.0)


def make_view(watch: Watch, profile: Profile, stated: float | None) -> DeviceView:
    """Return one process's share of the attempt's device; `stated` is the bandwidth of a GPU's memory."""
    facts, plan, measured = watch.device, watch.plan, watch.measured or {}
    parts = plan["processes"] / facts.count  # of one device
    dtype = profile.dtype or choose_usual_dtype(facts)
    peaks = {key: choose_device_peak(facts, key, plan.get("peak_tflops"), watch.measured) for key in DTYPES}
    peak = choose_device_peak(facts, dtype, plan.get("peak_tflops"), watch.measured)
    copied = pick_number(measured, "bandwidth", 1.0)
    bandwidth = stated or copied
    return DeviceView(
        kind=facts.kind,
        name=facts.name,
        processes=plan["processes"],
        peak=_share(peak, parts),
        peak_source=peak.source if peak else None,
        peaks={key: found.flops / parts for key, found in peaks.items() if found is not None},
        bandwidth=bandwidth / parts if bandwidth else None,
        bandwidth_source="bus width x memory clock" if stated else "measured copy" if copied else None,
        dispatch=pick_number(measured, "dispatch", 1e-12, 1e3),
        threads=pick_count(plan["cpu"], "threads", 1 << 20),
        cores=pick_count(plan["cpu"], "cores", 1 << 20),
        capability=facts.capability,
    )


def _share(peak: Peak | None, parts: float) -> float | None:
    return None if peak is None else peak.flops / parts


def read_ends(path: Path) -> Iterator[bytes]:
    """Yield the lines of the beginning and the end of a file, nothing where there is none; a cut one is left out."""
    if not path.exists():
        return
    size = path.stat().st_size
    if size <= HEAD_BYTES + TAIL_BYTES:
        yield from split_lines(read_pieces(path, 0, size))
        return
    yield from split_lines(read_pieces(path, 0, HEAD_BYTES))
    tail = split_lines(read_pieces(path, size - TAIL_BYTES, size))
    next(tail, None)  # begins somewhere inside
    yield from tail


def split_lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield whole lines; of one without an end no more than LONGEST_LINE is held."""
    held = b""
    for piece in pieces:
        lines = (held + piece).split(b"\n")
        held = lines.pop()[-LONGEST_LINE - 1 :]
        yield from lines
