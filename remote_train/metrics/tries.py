"""What to try on a training that could be faster, each with the gain it predicts and the figure that rests on.

A gain is a factor of training throughput of the whole run, as a range; None where no figure supports one. Every one is
Amdahl's law on a share of the time that was measured, or a ratio of floors; what is assumed beside it is named.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remote_train.metrics.floors import HOST_SECONDS, KERNEL_SECONDS, amdahl
from remote_train.metrics.wording import render_share, render_time

if TYPE_CHECKING:
    from collections.abc import Iterable

    from remote_train.metrics.floors import Case

LEAST_GAIN = 1.02
MOST_GAIN = 1000.0
BATCH = 4
FUSABLE = {"Adam", "AdamW", "SGD", "Adagrad"}
# CPU seconds of AdamW (foreach, one by one) over those of its fused form, for the 27 tensors of a GPT with 4 layers of 128, one
# thread: 7.6 and 6.1 ms over 1.85 ms, medians on a crowded machine (docs/benchmarks.md; 2.11 and 3.69 over 0.64 on a quiet
# one, mfu.md §5). Of a GPU: an assumption.
FUSED_RATIO = {"cpu": (4.1, 3.3), "cuda": (3.0, 3.0)}
FUSED_BYTES = 28.0
"""Of each parameter: Adam reads it, its gradient and two moments, and writes three of them, in four bytes each."""
CACHED_STATE = 64e6
"""Bytes of parameters and state from which on caches do not hold them from one step to the next."""
COMPILED_LAUNCHES = (0.25, 0.5)
"""The share of launches that fusion leaves: 391 operations of a tiny GPT become 100 to 200 (mfu.md §6)."""
COMPILED_LOSS = 0.9
"""What compiled code was on a CPU at its worst: a tiny GPT's throughput over that of its eager form (docs/benchmarks.md)."""
REACHED = 0.5
"""The share of its peak that good code gets from a GPU in a whole training step (mfu.md §6: 30 to 67 %)."""


@dataclass(frozen=True, slots=True)
class Try:
    """One thing to try: `id` for programs, `gain` (low, high) as a factor, None where no figure supports one."""

    id: str
    name: str
    how: str
    gain: tuple[float, float] | None
    basis: str
    caution: str | None = None

    @property
    def middle(self) -> float:
        """The gain to rank by and to compare with what was got: the geometric mean; 1 where none is predicted."""
        return math.sqrt(self.gain[0] * self.gain[1]) if self.gain else 1.0


def rank_tries(case: Case, word: str) -> tuple[Try, ...]:
    """Return what is worth trying, the largest predicted gain first, those without a prediction last."""
    makers = (
        _make_workers,
        _make_between,
        _make_eval,
        _make_save,
        _make_fused,
        _make_dtype,
        _make_threads,
        _make_share,
        _make_power,
        _make_sync,
        _make_gpu,
    )
    found = [made for made in (make(case) for make in makers) if made is not None]
    found += [
        made for made in (make(case, word) for make in (_make_batch, _make_compile, _make_graphs)) if made
    ]
    return tuple(sorted(_worth(found), key=lambda item: -item.middle))


def _worth(tries: Iterable[Try]) -> list[Try]:
    return [item for item in tries if item.gain is None or item.gain[1] >= LEAST_GAIN]


def make_gain(low: float, high: float) -> tuple[float, float]:
    """Return a range of gains, in order and within what can be meant."""
    ends = [min(max(value, 1.0), MOST_GAIN) if math.isfinite(value) else MOST_GAIN for value in (low, high)]
    return min(ends), max(ends)


def _make_workers(case: Case) -> Try | None:
    share, workers = case.share("data"), case.profile.settings.workers
    if share < 0.02:
        return None
    have = "none" if not workers else str(workers)
    more = 2 if not workers else workers * 2
    basis = f"waiting for data is {render_share(share)} of the time, measured; workers now: {have}"
    gain = make_gain(amdahl(share, 2.0), amdahl(share, math.inf))
    how = f"DataLoader(num_workers={more}, persistent_workers=True), prepare the data once, pin_memory=True"
    return Try("workers", "load data beside training", how, gain, basis)


def _make_between(case: Case) -> Try | None:
    share = case.share("other")
    if not case.profile.split or share < 0.1:
        return None
    basis = f"{render_share(share)} of the time lies between forward, backward and optimizer, measured"
    gain = make_gain(amdahl(share, 1.25), amdahl(share, 4.0))
    how = (
        "batches made beside training (a DataLoader with workers), less logging, zero_grad(set_to_none=True)"
    )
    return Try("between", "less of the script's own work in a step", how, gain, basis)


def _make_eval(case: Case) -> Try | None:
    share = case.share("eval")
    basis = f"evaluation is {render_share(share)} of the time, measured"
    gain = make_gain(amdahl(share, 2.0), amdahl(share, 4.0))
    how = "half to a quarter as many evaluations, or batches in each"
    return Try("eval", "evaluate less", how, gain, basis)


def _make_save(case: Case) -> Try | None:
    share = case.share("save")
    basis = f"saving checkpoints is {render_share(share)} of the time, measured"
    gain = make_gain(amdahl(share, 2.0), amdahl(share, 4.0))
    return Try("save", "save less often", "half to a quarter as many checkpoints", gain, basis)


def _make_fused(case: Case) -> Try | None:
    settings, share = case.profile.settings, case.share("optimizer")
    if settings.optimizer not in FUSABLE or settings.fused or not case.profile.split:
        return None
    foreach = settings.foreach if settings.foreach is not None else case.device.kind == "cuda"
    ratio = FUSED_RATIO[case.device.kind][0 if foreach else 1]
    basis = (
        f"the optimizer is {render_share(share)} of the time, measured; fused it takes 1/{ratio:g} of that"
    )
    large = (case.profile.trainable or 0) * FUSED_BYTES >= CACHED_STATE
    if large and case.profile.trainable and case.device.bandwidth:
        least = FUSED_BYTES * case.profile.trainable / case.device.bandwidth
        bound = case.seconds_of("optimizer") / least
        if bound < ratio:
            ratio, basis = (
                max(bound, 1.0),
                f"{basis}, but no less than its memory traffic, {render_time(least)}",
            )
    gain = make_gain(amdahl(share, max(ratio / 2.0, 1.0)), amdahl(share, ratio))
    return Try("fused", "a fused optimizer", f"{settings.optimizer}(…, fused=True)", gain, basis)


def _make_dtype(case: Case) -> Try | None:
    """Offer a faster dtype where the peaks and the matrix products' floor say that it helps; a floor is a lower bound."""
    peaks, settings = case.device.peaks, case.profile.settings
    if case.profile.dtype not in ("float32", "tf32") or case.starved or settings.amp:
        return None
    key = _choose_dtype(case)
    now = case.device.peak
    if key is None or not now or peaks[key] / now < 1.2 or _is_launch_bound(case):
        return None
    ratio, share = peaks[key] / now, min(case.floor("matmul") / case.wall, 1.0)
    how = {
        "bf16": "torch.autocast(device_type, dtype=torch.bfloat16) around the forward pass",
        "fp16": "torch.autocast with float16 and a GradScaler: this GPU has no bf16 units",
        "tf32": 'torch.set_float32_matmul_precision("high")',
    }[key]
    basis = (
        f"matrix products are at least {render_share(share)} of the time, and {ratio:.1f} x as fast in {key}"
    )
    caution = None if key == "tf32" else "it changes the numerics: compare the losses"
    gain: tuple[float, float] | None = make_gain(amdahl(share, ratio), amdahl(min(2.0 * share, 0.9), ratio))
    if case.device.kind == "cpu":
        # Small products are far from that peak and autocast converts around each: a tiny GPT got 0.87 x where the
        # ratio of the peaks gave 1.5 to 3 x (docs/benchmarks.md).
        gain, caution = None, f"small products lose by it on a CPU, and no figure says which; {caution}"
    return Try("dtype", f"{key} arithmetic", how, gain, basis, caution)


def _choose_dtype(case: Case) -> str | None:
    before_ampere = case.device.capability is not None and case.device.capability < (8, 0)
    wanted = ("fp16",) if before_ampere else ("bf16", "tf32")
    known = [key for key in wanted if key in case.device.peaks and key != case.profile.dtype]
    return max(known, key=lambda key: case.device.peaks[key], default=None)


def _make_threads(case: Case) -> Try | None:
    threads, cores = case.profile.settings.threads or case.device.threads, case.device.cores
    if case.device.kind != "cpu" or not threads or not cores:
        return None
    share = max(1, cores // max(case.device.processes, 1))
    how = f"OMP_NUM_THREADS={share}, and no other affinity"
    if threads > share:
        basis = f"{threads} threads on {share} cores: they wait for each other; no figure says how much"
        return Try("threads", "as many threads as cores", how, None, basis)
    if threads == share:
        return None
    part = max(case.work - case.floor("launch"), 0.0) / case.wall
    basis = (
        f"{threads} of {share} cores are used, and at most {render_share(part)} of the time can be shared out"
    )
    gain = make_gain(1.0, amdahl(part, share / threads))
    return Try("threads", "a thread for each performance core", how, gain, basis)


def _make_share(case: Case) -> Try | None:
    others = max((gpu.others or 0 for gpu in case.use.gpus), default=0)
    if case.device.kind == "cuda" and others:
        basis = f"{others} other processes compute on this GPU"
        return Try("share", "a GPU of its own", "--gpus with another index, or wait for them", None, basis)
    part = case.part_of_cpu
    if part > 0.8:
        return None
    basis = f"its {case.threads} threads got {case.use.run or 0.0:.1f} CPUs' worth while {case.use.load or 0.0:.1f} threads of all wanted to run"
    gain = make_gain(1.0, 1.0 / max(part, 0.01))
    return Try("share", "less beside it on this CPU", "end what else computes there", gain, basis)


def _make_power(case: Case) -> Try | None:
    for gpu in case.use.gpus:
        limited = gpu.watt_limit and gpu.watt_default and gpu.watt_limit < 0.97 * gpu.watt_default
        if limited and gpu.throttle.get("power", 0.0) >= 0.25:
            basis = f"limited to {gpu.watt_limit:.0f} W of {gpu.watt_default:.0f} in {render_share(gpu.throttle['power'])} of the samples"
            how = f"nvidia-smi -pl {gpu.watt_default:.0f} (root)"
            return Try("power", "the card's own power limit", how, None, basis)
    return None


def _make_sync(case: Case) -> Try | None:
    if not case.starved:
        return None
    basis = (
        f"the GPU waited for its host in {render_share(case.profile.starved or 0.0)} of the steps looked at"
    )
    how = "no .item(), print of a tensor or .cpu() in every step; pinned batches with non_blocking=True"
    return Try("sync", "let the host run ahead", how, None, basis)


def _make_gpu(case: Case) -> Try | None:
    kernels, flops = case.profile.kernels, case.profile.flops
    if case.device.kind != "cpu" or not kernels or not flops:
        return None
    # A card of the middle class as the yardstick: an RTX 4070 Ti's dense bf16 peak and bandwidth.
    device = max(flops / (80.2e12 * REACHED), (case.profile.bytes or 0.0) / 504e9)
    times = [max(kernels * seconds, device) for seconds in HOST_SECONDS]
    wall = case.wall * case.part_of_cpu
    apart = max(case.wall - case.work - case.seconds_of("optimizer"), 0.0) * case.part_of_cpu
    low, high = (wall / (apart + seconds) for seconds in (times[1], times[0]))
    basis = (
        f"a bound, not a measurement: {kernels:.0f} operations at an assumed 5 to 10 us each, or an RTX 4070 Ti's"
        f" memory and half its peak, are {render_time(times[0])} a step"
    )
    return Try("gpu", "a host with a GPU", "remote-train run --host NAME", make_gain(low, high), basis)


def _is_launch_bound(case: Case) -> bool:
    return case.device.kind == "cuda" and case.floor("launch") >= 0.5 * case.step


def _make_batch(case: Case, word: str) -> Try | None:
    caution = "it changes the training: a larger batch wants another learning rate and fewer steps"
    how = f"{BATCH} x the batch size"
    if case.device.kind == "cpu":
        fixed = min(case.floor("launch") + case.seconds_of("optimizer"), 0.95 * case.step)
        if fixed < 0.1 * case.step:
            return None
        # Small operations too take less for each sample of a larger batch; a half of what is no product, at most.
        small = max(case.step - case.floor("matmul") - fixed, 0.0) / 2.0
        low, high = (
            BATCH * case.step / (part + BATCH * (case.step - part)) for part in (fixed, fixed + small)
        )
        basis = (
            f"{render_time(fixed)} of {render_time(case.step)} a step do not grow with the batch (launches and the"
            f" optimizer), and at most {render_time(small)} of small operations grow less than it does (an assumption)"
        )
        return Try("batch", "a larger batch", how, make_gain(1.0 + (low - 1.0) / 2.0, high), basis, caution)
    if word != "launch-bound":
        return None
    device = max(case.floor("matmul") / REACHED, case.floor("memory"), 1e-9)
    room = case.step / device
    if room < 1.5:
        return None
    factor = 2 ** max(1, min(6, int(math.log2(room))))
    data = case.seconds_of("data")  # so many times as much of it
    low, high = (more * case.wall / (case.wall - data + more * data) for more in (factor / 2.0, factor))
    basis = (
        f"the host takes {render_time(case.step - data)} a step whatever the batch; the device's own work is about"
        f" {render_time(device)}, at half its peak"
    )
    return Try(
        "batch",
        "a larger batch",
        f"{factor} x the batch size",
        make_gain(low, high),
        basis,
        caution,
    )


def _make_compile(case: Case, word: str) -> Try | None:
    if case.profile.settings.compiled or case.profile.settings.compiled is None:
        return None
    how = "model = torch.compile(model)"
    caution = "the first steps take a minute longer"
    if case.device.kind == "cpu":
        launch = min(case.floor("launch"), case.work) / case.wall
        rest = max(case.work - case.floor("matmul") - case.floor("launch"), 0.0) / case.wall
        basis = f"launches are {render_share(launch)} of the time and work beside matrix products {render_share(rest)}, of which fusion saves a part; some models lose by it"
        gain = COMPILED_LOSS, make_gain(1.0, amdahl(launch + rest / 2.0, 2.0))[1]
        return Try("compile", "compile the model", how, gain, basis, caution)
    if word == "launch-bound":
        few, many = COMPILED_LAUNCHES
        least = max(case.floor("matmul") / REACHED, case.floor("memory"))
        launched = case.step - case.seconds_of("data")
        low, high = (case.wall / (case.aside + max(launched * left, least)) for left in (many, few))
        basis = (
            "fusion leaves a quarter to half of the launches (an assumption), and those are what a step takes"
        )
        return Try("compile", "compile the model", how, make_gain(low, high), basis, caution)
    share = min(case.floor("memory") / case.wall, 0.9)
    basis = f"memory traffic is at least {render_share(share)} of the time, and fusion saves about half of it (an assumption)"
    return Try("compile", "compile the model", how, make_gain(1.0, amdahl(share, 2.0)), basis, caution)


def _make_graphs(case: Case, word: str) -> Try | None:
    kernels = case.profile.kernels
    if word != "launch-bound" or case.device.kind != "cuda" or not kernels or (case.profile.shapes or 1) > 1:
        return None
    least = max(kernels * KERNEL_SECONDS, case.floor("matmul") / REACHED, case.floor("memory"))
    basis = (
        f"one launch a step instead of {kernels:.0f}: {render_time(least)} of {render_time(case.step)} are left at"
        f" {KERNEL_SECONDS * 1e6:.0f} us a kernel (an assumption)"
    )
    high = case.wall / (case.aside + least)
    gain = make_gain(min(1.2, high), high)
    how = 'torch.compile(model, mode="reduce-overhead"): CUDA graphs; every batch of one shape'
    return Try("graphs", "CUDA graphs", how, gain, basis)
