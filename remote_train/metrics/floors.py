"""The least that a step can take, by what limits it: arithmetic, memory, launching operations. Pure arithmetic, with its sources.

A floor is a bound from below, not a part of the step: on a GPU they lie over each other, on a CPU they add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remote_train.metrics.profile import Profile
    from remote_train.metrics.telemetry import HostUse

HOST_SECONDS = (5e-6, 10e-6)
"""What one eager operation costs the host of a GPU where nobody measured it: an assumption (torch 2 on current CPUs)."""
KERNEL_SECONDS = 2e-6
"""What a kernel costs a GPU whatever it does: the floor that torchao's roofline assumes on an H100."""
CACHED = {"cpu": 4e6, "cuda": 16e6}
"""Bytes that an operation may touch on average for its tensors to be found in caches still: then memory is no floor."""
STARVED = 0.5
DISPROVED = 1.3
"""A floor of so many steps is none: caches held the bytes, or a CUDA graph launched the operations. A little more than one is one."""
BUSY = 0.9
"""The share of all CPUs that works where threads have to wait for one."""


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One process's share of the device it trains on; None is unknown.

    Rates are FLOP/s and bytes/s: of one GPU, or of a CPU divided by the processes on it. `peaks` are by dtype as hosts.toml
    spells them (fp32, tf32, bf16, fp16). `dispatch` is the seconds of one small eager operation, measured.
    """

    kind: Literal["cpu", "cuda"]
    name: str
    processes: int = 1
    peak: float | None = None
    peak_source: str | None = None
    peaks: Mapping[str, float] = field(default_factory=dict)
    bandwidth: float | None = None
    bandwidth_source: str | None = None
    dispatch: float | None = None
    threads: int | None = None
    """Of one process."""
    cores: int | None = None
    """Physical performance cores that the account may use."""
    capability: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Floor:
    """The least seconds of a step for one reason, and what that rests on."""

    name: Literal["matmul", "memory", "launch"]
    seconds: float
    basis: str
    assumed: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """One attempt, put together to be judged: all in seconds of one training step.

    `step` is one without evaluation and checkpoints, `wall` the same with its part of them.
    """

    profile: Profile
    device: DeviceView
    use: HostUse
    step: float
    wall: float
    floors: Mapping[str, Floor]

    def share(self, phase: str) -> float:
        """Return a phase's measured share of all time, 0 where it was not measured."""
        return self.profile.shares.get(phase, 0.0)

    def floor(self, name: str) -> float:
        """Return a floor in seconds, 0 where there is none."""
        found = self.floors.get(name)
        return found.seconds if found else 0.0

    @property
    def starved(self) -> bool:
        """Whether the GPU was seen to wait for its host in most of the steps that were looked at."""
        return self.device.kind == "cuda" and (self.profile.starved or 0.0) >= STARVED

    @property
    def threads(self) -> int:
        """Threads of all processes, 0 where that is not known."""
        return (self.profile.settings.threads or self.device.threads or 0) * self.device.processes

    @property
    def part_of_cpu(self) -> float:
        """The part of the CPUs that its threads wanted and got, where more threads than its own wanted to run; else 1.

        While CPUs are idle nobody takes them away: threads that got less then had no more to do.
        """
        run, load, busy = self.use.run, self.use.load, self.use.busy
        if self.device.kind != "cpu" or not self.threads or run is None or load is None:
            return 1.0
        if busy is not None and busy < BUSY:
            return 1.0
        return min(run / self.threads, 1.0) if load >= self.threads + 1.0 else 1.0

    @property
    def aside(self) -> float:
        """The seconds for each step that neither the device nor launches take: waiting for data, evaluation, checkpoints."""
        return self.wall - self.step + self.seconds_of("data")

    @property
    def work(self) -> float:
        """The seconds of a step that are neither waiting for data nor the optimizer's."""
        return max(self.step - self.seconds_of("data") - self.seconds_of("optimizer"), 0.0)

    def seconds_of(self, phase: str) -> float:
        """Return a phase's seconds for each step."""
        return self.share(phase) * self.wall


def make_case(profile: Profile, device: DeviceView, use: HostUse) -> Case | None:
    """Put a case together; None where no step was timed."""
    step = profile.step_seconds
    if not step or not math.isfinite(step):
        return None
    apart = min(profile.shares.get("eval", 0.0) + profile.shares.get("save", 0.0), 0.999)
    floors: dict[str, Floor] = {
        floor.name: floor
        for floor in (
            make_matmul(profile, device),
            _hold_against(step, make_memory(profile, device)),
            _hold_against(step, make_launch(profile, device)),
        )
        if floor is not None and floor.seconds > 0
    }
    return Case(profile, device, use, step, step / (1.0 - apart), floors)


def _hold_against(step: float, floor: Floor | None) -> Floor | None:
    """Return a floor that the step does not disprove, and no more than the step."""
    if floor is None or floor.seconds > DISPROVED * step:
        return None
    return replace(floor, seconds=min(floor.seconds, step))


def make_matmul(profile: Profile, device: DeviceView) -> Floor | None:
    """Return FLOPs of a step over the peak for the dtype in use."""
    if not profile.flops or not device.peak:
        return None
    return Floor("matmul", profile.flops / device.peak, device.peak_source or "a peak of unknown source")


def make_memory(profile: Profile, device: DeviceView) -> Floor | None:
    """Return the bytes that operations read and write over the bandwidth; None where caches hold them, or it is compiled.

    Compiled, an operation hands its result on without memory: what was counted operation by operation is no bound then.
    """
    if not profile.bytes or not device.bandwidth or not profile.kernels or profile.settings.compiled:
        return None
    if profile.bytes / profile.kernels < CACHED[device.kind]:
        return None
    return Floor("memory", profile.bytes / device.bandwidth, device.bandwidth_source or "measured copy")


def make_launch(profile: Profile, device: DeviceView) -> Floor | None:
    """Return the operations of a step times what launching one costs; None where compiled code launches others."""
    if not profile.kernels or profile.settings.compiled:
        return None
    count = f"{profile.kernels:.0f} operations"
    if device.dispatch:
        basis = f"{count} x {device.dispatch * 1e6:.1f} us, measured"
        return Floor("launch", profile.kernels * device.dispatch, basis)
    if device.kind == "cpu":
        return None
    low, high = HOST_SECONDS
    basis = f"{count} x {low * 1e6:.0f} us of the host, an assumption ({low * 1e6:.0f} to {high * 1e6:.0f})"
    return Floor("launch", profile.kernels * low, basis, assumed=True)


def amdahl(share: float, factor: float) -> float:
    """Return how much faster the whole becomes when a share of its time becomes `factor` times faster (Amdahl's law)."""
    share = min(max(share, 0.0), 0.999)
    if factor <= 1.0:
        return 1.0
    rest = 0.0 if math.isinf(factor) else share / factor
    return 1.0 / (1.0 - share + rest)
