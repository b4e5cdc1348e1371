"""One picture of the processes, and who descends from whom. Pure: values in, values out; both halves fill it."""

from __future__ import annotations

import collections

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Dict, Iterable, List, NamedTuple, Set

    class Process(NamedTuple):
        """One process as the system listed it; `start` tells it from a later one with the same pid."""

        pid: int
        parent: int
        group: int
        start: str
        zombie: bool

    Table = Dict[int, Process]
else:
    Process = collections.namedtuple("Process", "pid parent group start zombie")  # noqa: PYI024  (as above)
    Table = dict


def walk_down(table: Table, roots: Iterable[int]) -> Set[int]:
    """Return the roots and everything that descends from them; a root need not be in the table."""
    children: Dict[int, List[int]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: Set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting.extend(children.get(pid, ()))
    return found
