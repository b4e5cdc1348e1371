"""How an attempt ended: from the launcher's wait status and the ranks' own words to one outcome.

torchrun ends with 1 for everything, so a rank's own end outranks the launcher's. What nobody saw stays None.
"""

from __future__ import annotations

import json
import os
import re
import signal

from remote_train.host import layout
from remote_train.host.durable import read_record, sync_folder

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional

MESSAGE_LIMIT = 2000
LIST_TRIES = 3
ERROR_LIMIT = 256 * 1024
ROOT_CAUSE_BYTES = 64 * 1024
_ROOT_CAUSE = re.compile(
    rb"Root Cause \(first observed failure\):.*?rank\s*: (\d+).*?exitcode\s*: (-?\d+)", re.DOTALL
)


def read_rows(folder: str, name: str) -> List[Dict[str, Any]]:
    """Return what ranks wrote into ends.jsonl or begins.jsonl, in the order of its time; a torn line is left out."""
    rows = []
    try:
        with open(os.path.join(folder, layout.RANKS, name), "rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                    row["time"], row["rank"] = float(row["time"]), int(row["rank"])
                except (ValueError, KeyError, TypeError):
                    continue
                rows.append(row)
    except OSError:
        return []
    return sorted(rows, key=lambda row: float(row["time"]))


def count_restarts(folder: str) -> int:
    """Return how often torchrun has started all ranks anew."""
    return max([int(row.get("restart", 0)) for row in read_rows(folder, layout.RANK_BEGINS)] or [0])


def make_outcome(folder: str, status: Optional[int], launcher: str) -> Dict[str, Any]:
    """Return `code`, `signal`, `first_failure` and `restarts`; the code is the first failing rank's where there is one.

    With `superseded_by`: the attempt that it was stopped for.
    """
    outcome: Dict[str, Any] = {"code": None, "signal": None, "first_failure": None}
    outcome["restarts"] = count_restarts(folder)
    asked = read_record(os.path.join(folder, layout.STOP)) or {}
    if asked.get("superseded_by") is not None:
        outcome["superseded_by"] = asked["superseded_by"]
    if status is None:
        return outcome
    if os.WIFSIGNALED(status):
        outcome["signal"] = os.WTERMSIG(status)
    else:
        outcome["code"] = os.WEXITSTATUS(status)
    if outcome["code"] == 0:
        return outcome
    if launcher == "python":
        first = {"rank": 0, "code": outcome["code"], "signal": outcome["signal"]}
    else:
        # A torchrun that was killed itself had its ranks ended by us: their ends tell nothing.
        found = None if outcome["signal"] else find_first_failure(folder, outcome["restarts"])
        if found is None:
            return outcome
        first = found
        outcome.update(code=first["code"], signal=first["signal"])
    outcome["first_failure"] = dict(first, **read_error(folder, first["rank"]))
    return outcome


def has_failure(folder: str) -> bool:
    """Tell whether a rank of the present round has ended with something else than 0."""
    restarts = count_restarts(folder)
    rows = read_rows(folder, layout.RANK_ENDS)
    return any(row["code"] != 0 and row.get("restart", 0) == restarts for row in rows)


def find_first_failure(folder: str, restarts: int) -> Optional[Dict[str, Any]]:
    """Return rank, code and signal of the rank that failed first in the last round, None when none is known to have.

    Ranks that torchrun ended because another had failed are not it. A rank that began and left no word was itself
    killed together with our shim: then torchrun's own words tell who was first, if it had time to write them.
    """
    ends = [row for row in read_rows(folder, layout.RANK_ENDS) if row.get("restart", 0) == restarts]
    begun = {
        row["rank"] for row in read_rows(folder, layout.RANK_BEGINS) if row.get("restart", 0) == restarts
    }
    silent = sorted(begun - {row["rank"] for row in ends})
    if silent:
        told = read_root_cause(folder)
        if told is not None and told["rank"] in silent:
            return told
    failures = [row for row in ends if row["code"] != 0]
    unasked = [row for row in failures if row["signal"] != signal.SIGTERM]
    for row in unasked or failures:
        return {key: row[key] for key in ("rank", "code", "signal")}
    return {"rank": silent[0], "code": None, "signal": None} if silent else None


def read_root_cause(folder: str) -> Optional[Dict[str, Any]]:
    """Return who failed first by the report that torchrun writes into launcher.log, None when there is none."""
    try:
        with open(os.path.join(folder, layout.LAUNCHER_LOG), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - ROOT_CAUSE_BYTES))
            found = _ROOT_CAUSE.search(file.read())
    except OSError:
        return None
    if found is None:
        return None
    rank, code = int(found.group(1)), int(found.group(2))
    return {"rank": rank, "code": code if code >= 0 else None, "signal": -code if code < 0 else None}


def read_error(folder: str, rank: int) -> Dict[str, Any]:
    """Return `error_file` and its `error`, the message of a rank whose main function is wrapped in torch's @record."""
    name = os.path.join(layout.RANKS, layout.RANK_ERROR % rank)
    try:
        with open(os.path.join(folder, name), "rb") as file:
            message = json.loads(file.read(ERROR_LIMIT).decode("utf-8", "replace"))["message"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    text = message.get("message") if isinstance(message, dict) else message
    return {"error_file": name, "error": str(text)[:MESSAGE_LIMIT]}


def sync_outputs(folder: str, fail: Callable[[OSError], None]) -> Dict[str, int]:
    """Make the outputs durable and return their sizes; what could not be is told to `fail`, and costs no other output."""
    sizes: Dict[str, int] = {}
    ranks = os.path.join(folder, layout.RANKS)
    for name in _list_again(ranks, fail):
        path = os.path.join(ranks, name)
        if name.endswith(".log"):
            sizes[name[:-4]] = _measure(path)
        _try_sync(path, fail)
    return sizes


def _list_again(ranks: str, fail: Callable[[OSError], None]) -> List[str]:
    """List a folder, again when that fails: without the list an end would speak of no output at all."""
    for _ in range(LIST_TRIES - 1):
        names = _try_list(ranks, fail)
        if names is not None:
            return names
    return _try_list(ranks, fail) or []


def _try_list(ranks: str, fail: Callable[[OSError], None]) -> Optional[List[str]]:
    try:
        return os.listdir(ranks)
    except OSError as error:
        fail(error)
        return None


def _measure(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _try_sync(path: str, fail: Callable[[OSError], None]) -> None:
    try:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        sync_folder(os.path.dirname(path))
    except OSError as error:
        fail(error)


def measure_others(folder: str) -> Dict[str, int]:
    """Return the sizes of what a laptop mirrors beside the ranks' outputs: the clock, torchrun's words, and the metrics."""
    return {name: _measure(layout.output_path(folder, name)) for name in layout.OTHERS}


def count_oom_kills() -> Optional[int]:
    """Return how many processes this host's kernel has killed for want of memory since its boot; None if it does not say."""
    try:
        with open("/proc/vmstat", "rb") as file:
            for line in file:
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
    except (OSError, ValueError):
        return None
    return None
