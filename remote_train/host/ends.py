"""How an attempt ended: from the launcher's wait status and the ranks' own words to one outcome."""

from __future__ import annotations

import json
import os

from remote_train.host import layout

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional


def read_ends(folder: str) -> List[Dict[str, Any]]:
    """Return how each rank ended, in the order it happened; ranks that left no word are absent."""
    try:
        with open(os.path.join(folder, layout.RANKS, layout.RANK_ENDS), "rb") as file:
            ends = [json.loads(line) for line in file]
    except (FileNotFoundError, ValueError):
        return []
    return sorted(ends, key=lambda end: float(end["time"]))


def make_outcome(status: Optional[int], ends: List[Dict[str, Any]], launcher: str) -> Dict[str, Any]:
    """Return `code`, `signal` and `first_failure`: the first failing rank's where there is one.

    torchrun exits with 1 for everything, so a rank's own end outranks the launcher's.
    """
    outcome: Dict[str, Any] = {"code": None, "signal": None, "first_failure": None}
    if status is None:
        return outcome
    if os.WIFSIGNALED(status):
        outcome["signal"] = os.WTERMSIG(status)
    else:
        outcome["code"] = os.WEXITSTATUS(status)
    failures = [end for end in ends if end["code"] != 0]
    if outcome["code"] != 0 and launcher == "torchrun" and failures:
        first = {key: failures[0][key] for key in ("rank", "code", "signal")}
        outcome.update(first_failure=first, code=first["code"], signal=first["signal"])
    elif outcome["code"] != 0 and launcher == "python":
        outcome["first_failure"] = {"rank": 0, "code": outcome["code"], "signal": outcome["signal"]}
    return outcome
