"""Why a training is as fast as it is: one word, one sentence with its figures, floors, and what to try. Pure.

The word is that of the largest cause whose size is known. Where the figures explain less than two fifths of a step, the
word says only where the rest lies; no cause is named that nothing supports.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from remote_train.metrics.figures import is_suspect, render_mfu
from remote_train.metrics.floors import Case, Floor, make_case
from remote_train.metrics.tries import Try, rank_tries
from remote_train.metrics.wording import render_rate, render_share, render_time

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remote_train.metrics.floors import DeviceView
    from remote_train.metrics.profile import Profile
    from remote_train.metrics.telemetry import HostUse

LARGE = 0.4
"""The share of the time from which on a cause names the bottleneck."""
WAITING = 0.25
OFTEN = 0.5
GOOD = 0.4
"""An MFU of the measured or tabled peak that good code rarely exceeds (mfu.md §6: 30 to 67 % for GPT-2 124M)."""
LIMITED = 0.97
UNUSED = 0.02
"""Of the time; a GPU on which no kernel runs more often is not trained on."""
MEASURED_TRIES = ("workers", "between", "eval", "save", "fused", "share", "power", "sync")
"""What rests on measured shares alone, and on no peak."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is the matter with a training, for people and for programs.

    `bottleneck` is launch-bound, data-bound, memory-bound, compute-bound, CPU-bound, throttled (power), throttled (thermal),
    evaluation, checkpoints or unknown; `tries` are ranked.
    """

    bottleneck: str
    sentence: str
    floors: tuple[Floor, ...] = ()
    tries: tuple[Try, ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)
    step_seconds: float | None = None
    mfu: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Give every field."""
        return asdict(self)


def diagnose(profile: Profile, device: DeviceView, use: HostUse) -> Diagnosis:
    """Judge one attempt by what its meter and its host's telemetry saw."""
    case = make_case(profile, device, use)
    if case is None:
        return Diagnosis("unknown", _say_nothing_timed(profile))
    word, sentence = _judge(case)
    tries = rank_tries(case, word)
    if is_suspect(_mfu(case)):
        tries = tuple(item for item in tries if item.id in MEASURED_TRIES)
    elif word == "compute-bound" and _mfu(case) >= GOOD:
        tries = tuple(item for item in tries if item.id in ("dtype", "eval", "save", "workers"))
    return Diagnosis(
        bottleneck=word,
        sentence=sentence,
        floors=tuple(case.floors.values()),
        tries=tries,
        shares=dict(profile.shares),
        step_seconds=case.step,
        mfu=_mfu(case) or None,
    )


def _say_nothing_timed(profile: Profile) -> str:
    if profile.off is not None:
        return f"The meter was off: {profile.off}"
    return "The meter timed no step of this run, so nothing can be said of where its time goes."


def _mfu(case: Case) -> float:
    return case.floor("matmul") / case.step


def _judge(case: Case) -> tuple[str, str]:
    for judge in (_judge_unused, _judge_apart, _judge_throttle, _judge_denominator, _judge_cuda, _judge_cpu):
        found = judge(case)
        if found is not None:
            return found
    return "unknown", f"A step takes {render_time(case.step)}, and {_list_known(case)}."


def _judge_unused(case: Case) -> tuple[str, str] | None:
    """Judge a GPU on which nothing runs; parameters on the CPU alone say little, an optimizer may be offloaded."""
    loads = [gpu.utilization for gpu in case.use.gpus if gpu.utilization is not None]
    if case.device.kind != "cuda" or case.profile.device != "cpu" or max(loads, default=1.0) >= UNUSED:
        return None
    return "CPU-bound", (
        f"It trains on the CPU of its host and leaves the {case.device.name} idle: what its optimizer updates lies on"
        f' the CPU, and a step takes {render_time(case.step)}. Move model and batches to the GPU: .to("cuda").'
    )


def _judge_apart(case: Case) -> tuple[str, str] | None:
    """Judge what is not training: waiting for data, evaluation, checkpoints."""
    words = {
        "data": ("data-bound", WAITING, "waiting for the next batch"),
        "eval": ("evaluation", LARGE, "evaluation"),
        "save": ("checkpoints", LARGE, "saving checkpoints"),
    }
    large = [phase for phase, (_, least, _) in words.items() if case.share(phase) >= least]
    if not large:
        return None
    phase = max(large, key=case.share)
    (word, _, what), share = words[phase], case.share(phase)
    return word, (
        f"{render_share(share)} of the time is {what}: {render_time(case.seconds_of(phase))} for each step of"
        f" {render_time(case.step)}{_add_mfu(case)}."
    )


def _judge_throttle(case: Case) -> tuple[str, str] | None:
    for gpu in case.use.gpus if case.device.kind == "cuda" else ():
        for word in ("thermal", "power"):
            share = gpu.throttle.get(word, 0.0)
            lowered = gpu.watt_limit and gpu.watt_default and gpu.watt_limit < LIMITED * gpu.watt_default
            if share < OFTEN or (word == "power" and not lowered):
                continue
            reason = "too warm"
            if gpu.celsius is not None:
                reason += f" ({gpu.celsius:.0f} C)"
            if word == "power":
                reason = f"limited to {gpu.watt_limit:.0f} W, by default it has {gpu.watt_default:.0f}"
            clock = "" if gpu.sm_mhz is None else f", and runs at {gpu.sm_mhz:.0f} MHz"
            return f"throttled ({word})", (
                f"The GPU is {reason} in {render_share(share)} of the samples{clock}{_add_mfu(case)}."
            )
    if case.device.kind == "cpu" and (case.use.throttled or 0.0) >= OFTEN:
        clock = "" if case.use.mhz is None else f": its cores run at {case.use.mhz:.0f} MHz"
        return "throttled (thermal)", (
            f"Heat holds this CPU down in {render_share(case.use.throttled or 0.0)} of the samples{clock}{_add_mfu(case)}."
        )
    return None


def _judge_denominator(case: Case) -> tuple[str, str] | None:
    """Judge what no device can do: then a figure is wrong, and nothing that rests on it is worth saying."""
    if not is_suspect(_mfu(case)):
        return None
    return "unknown", (
        f"By its peak of {_name_peak(case)} its matrix products alone would take {render_time(case.floor('matmul'))}, and a step takes"
        f" {render_time(case.step)}: MFU {render_mfu(_mfu(case))}. It is another device than it says, another dtype than"
        " is thought, or FLOPs were counted that were never done."
    )


def _judge_cuda(case: Case) -> tuple[str, str] | None:
    if case.device.kind != "cuda":
        return None
    launch = case.floors.get("launch")
    if launch and (
        launch.seconds >= OFTEN * case.step or (case.starved and launch.seconds >= 0.2 * case.step)
    ):
        return "launch-bound", (
            f"The GPU waits for its host to launch work: {launch.basis}, are at least {render_time(launch.seconds)}"
            f" of the {render_time(case.step)} a step{_add_matmul(case)}."
        )
    if case.starved:
        return "CPU-bound", (
            f"The GPU waits for its host in {render_share(case.profile.starved or 0.0)} of the steps looked at, and not"
            f" for launches alone: a step takes {render_time(case.step)}{_add_matmul(case)}."
        )
    return _judge_floors(case)


def _judge_cpu(case: Case) -> tuple[str, str] | None:
    if case.part_of_cpu < OFTEN and case.device.kind == "cpu":
        return "CPU-bound", (
            f"Others use this CPU: the run's {case.threads} threads got {case.use.run or 0.0:.1f} CPUs' worth while"
            f" {case.use.load or 0.0:.1f} threads of all wanted to run, and a step takes {render_time(case.step)}{_add_matmul(case)}."
        )
    found = _judge_floors(case)
    if found is not None or case.device.kind != "cpu" or not (case.floors or case.profile.split):
        return found
    launch = case.floors.get("launch")
    if launch and launch.seconds >= WAITING * case.step and launch.seconds >= case.floor("matmul"):
        return "launch-bound", (
            f"torch's own work around its operations takes {render_time(launch.seconds)} of the {render_time(case.step)} a step"
            f" ({launch.basis}){_add_matmul(case)}."
        )
    return "CPU-bound", f"A step takes {render_time(case.step)} on this CPU, and {_list_known(case)}."


def _judge_floors(case: Case) -> tuple[str, str] | None:
    """Judge by the larger of arithmetic and memory, where it is a large part of the step."""
    matmul, memory = case.floor("matmul"), case.floor("memory")
    if max(matmul, memory) < LARGE * case.step:
        return None
    if memory > matmul:
        return "memory-bound", (
            f"Reading and writing {(case.profile.bytes or 0.0) / 1e9:.2f} GB a step takes at least {render_time(memory)} of its"
            f" {render_time(case.step)} ({case.floors['memory'].basis}){_add_matmul(case)}."
        )
    good = ": that is good" if _mfu(case) >= GOOD else ""
    return "compute-bound", (
        f"Matrix products take at least {render_time(matmul)} of the {render_time(case.step)} a step, so it reaches"
        f" {render_mfu(_mfu(case))} of the peak ({_name_peak(case)}){good}."
    )


def _list_known(case: Case) -> str:
    """Say what the known parts of a step are, and how much none of them explains."""
    parts = []
    if "matmul" in case.floors:
        parts.append(
            f"its matrix products at the peak ({_name_peak(case)}) would take {render_time(case.floor('matmul'))}"
        )
    if "launch" in case.floors:
        parts.append(f"torch's own work around operations {render_time(case.floor('launch'))}")
    if case.seconds_of("optimizer") > 0:
        parts.append(f"the optimizer {render_time(case.seconds_of('optimizer'))}")
    if not parts:
        return "no floor of it is known"
    known = (
        case.floor("matmul") + case.floor("launch") + case.seconds_of("optimizer") + case.seconds_of("data")
    )
    left = max(case.step - known, 0.0)
    rest = (
        f"; the other {render_time(left)} are small or slow operations and what runs beside it"
        if left
        else ""
    )
    return ", ".join(parts) + rest


def _add_matmul(case: Case) -> str:
    if "matmul" not in case.floors:
        return ""
    return f"; its matrix products would take {render_time(case.floor('matmul'))}, {render_mfu(_mfu(case))}, at the peak"


def _add_mfu(case: Case) -> str:
    return (
        f"; while it trains it reaches {render_mfu(_mfu(case))} of the peak"
        if "matmul" in case.floors
        else ""
    )


def _name_peak(case: Case) -> str:
    return render_rate(case.device.peak or 0.0)
