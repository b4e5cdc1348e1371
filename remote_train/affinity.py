"""Which CPUs the processes of a training are bound to: on a hybrid processor the performance cores, one thread on each.

Pure. Threads and affinity are decided together or not at all: threads that outnumber the CPUs they are bound to were seen
30 times slower, and one thread on an efficiency core keeps all others waiting at the end of every operation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remote_train.host.fingerprint import THREADS

if TYPE_CHECKING:
    from collections.abc import Mapping

Sets = tuple[tuple[int, ...], ...]
"""The CPUs of each process of this node, by its local rank; () where they are left alone."""


def choose_affinity(cpu: Mapping[str, Any], words: Mapping[str, str], processes: int) -> Sets:
    """Return disjoint sets of CPUs, whole performance cores each, for the processes of a CPU run on one host.

    `cpu` are the host's facts, `words` what its user says in variables. () on a processor of one kind of core, where the
    user has a word on threads or on CPUs, where a quota allows less than the cores, and for more processes than cores.
    """
    cores = cpu.get("performance_cpus") or []
    hybrid = 0 < cpu.get("performance", 0) < cpu.get("physical", 0)
    quota = cpu.get("quota")
    own = cpu.get("narrowed", False) or any(words.get(name) for name in THREADS)
    if not hybrid or own or len(cores) < processes or (quota is not None and quota < len(cores)):
        return ()
    share = len(cores) // processes
    parts = [cores[rank * share : (rank + 1) * share] for rank in range(processes)]
    return tuple(tuple(sorted(number for core in part for number in core)) for part in parts)


def render_affinity(cpu: Mapping[str, Any], affinity: Sets) -> str:
    """Return the line that says what was decided."""
    cores = f"{cpu['performance']} performance cores of {cpu['physical']}"
    if len(affinity) == 1:
        return f"{cores}, threads and affinity set to them"
    return f"{cores}, shared out among {len(affinity)} processes, threads and affinity set to them"
