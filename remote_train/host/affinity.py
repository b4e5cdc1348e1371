"""Bind processes to CPUs, where the system can: the training's, and the measurement that its MFU is divided by."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Sequence, TypeVar

    T = TypeVar("T")


def choose_sets(plan: Dict[str, Any], environment: Dict[str, str]) -> List[List[int]]:
    """Return the CPUs of each process as planned, by local rank; [] where the plan has none, or they would not fit.

    They fit while the threads are those the plan decided with them, and this process may use all of these CPUs.
    """
    sets: List[List[int]] = plan.get("affinity") or []
    threads = plan.get("default_env", {}).get("OMP_NUM_THREADS")
    if not sets or not hasattr(os, "sched_getaffinity") or environment.get("OMP_NUM_THREADS") != threads:
        return []
    return sets if set().union(*sets) <= os.sched_getaffinity(0) else []


def bind(cpus: Sequence[int]) -> None:
    """Bind this process, and so all that it starts; no CPUs, or none that the system grants, leave it as it is."""
    if not cpus:
        return
    try:
        os.sched_setaffinity(0, cpus)
    except OSError:  # all of them went offline meanwhile: the threads alone are what other processors get
        return


def work_bound(cpus: Sequence[int], work: Callable[[], T]) -> T:
    """Return what `work` returns, done while this process is bound."""
    if not cpus:
        return work()
    before = os.sched_getaffinity(0)
    bind(cpus)
    try:
        return work()
    finally:
        bind(sorted(before))


def render_sets(sets: Sequence[Sequence[int]]) -> str:
    """Return the sets as the rank shim reads them: "0,1;2,3"."""
    return ";".join(",".join(map(str, part)) for part in sets)
