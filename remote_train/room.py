"""Room on a host for a checkpoint that a run goes on from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remote_train.errors import HostSpace
from remote_train.host.arrivals import MOST_ASKED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remote_train.session import Session

Row = dict[str, Any]


def check_space(session: Session, host: str, rows: Sequence[Row]) -> None:
    """Raise HostSpace where what comes and its copies in the snapshot do not fit; the next checkpoint needs as much."""
    need = sum(row["size"] for row in rows)
    sizes = {row["sha256"]: row["size"] for row in rows if row["attempt"] is None}
    asked = [list(item) for item in sizes.items()]
    answer: Row = {}
    for place in range(0, len(asked) or 1, MOST_ASKED):
        answer = session.request("lack", contents=asked[place : place + MOST_ASKED])
        need += sum(sizes[sha256] - answer["held"].get(sha256, 0) for sha256 in answer["missing"])
    if need > answer["free"]:
        raise HostSpace(
            f"{host}: {answer['path']}: going on takes {need:,} bytes, and {answer['free']:,} are free",
            hint=f"free space there (`remote-train gc --host {host}`), or go on elsewhere with --host NAME",
            host=host,
            need=need,
            have=answer["free"],
        )
