"""What the laptop may ask for of a run's files: where a line of its output begins, what it made, and a file's bytes."""

from __future__ import annotations

from remote_train.host import blocks, files, globs, layout, life, units
from remote_train.host.start import Refusal

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    from remote_train.host.operations import Operations

FASTEST = 1e15
"""Bytes a second that a limit may be."""


def find_tail(operations: Operations, request: Dict[str, Any]) -> None:
    """Return the byte where the last N lines of a rank's output begin, and its size; lines may be endless."""
    path = layout.rank_log(operations.attempt_dir(request), int(request["rank"]))
    lines = int(request["lines"])
    operations.aside(request["id"], lambda: files.find_tail(path, lines))


def list_files(operations: Operations, request: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """Return a page of the files an attempt made; what was shipped may have to be read.

    With `checkpoints` the globs name checkpoints: each row has its `unit` and that unit's `state`, and all of a folder of
    shards comes when one of them is named. Then the answer waits for what is settling, some seconds at most.
    """
    folder = operations.attempt_dir(request)
    state = operations.read(request)
    record = state.get("attempt")
    if record is None:
        return {"files": [], "next": None}
    if not files.has_snapshot(folder):
        raise Refusal("no-such-file", "the files of %s are gone from this host" % request["run"])
    wanted = [str(glob) for glob in request["globs"]]
    for glob in wanted:
        globs.make_pattern(glob)
    listing = operations.listing = operations.listing or files.Listing()
    after, units_too = str(request.get("after", "")), bool(request.get("checkpoints"))
    sure = bool(request.get("sure", True))

    def list_anew() -> List[Dict[str, Any]]:
        if units_too:
            return _list_checkpoints(operations.root, folder, state, wanted)
        made = files.list_made(operations.root, folder, record, wanted, sure=sure)
        return [row for row in made if units.is_nameable(str(row["path"]))]

    page = (folder, wanted, units_too, sure)
    operations.aside(request["id"], lambda: listing.take_page(page, after, list_anew))
    return None


def _list_checkpoints(
    root: str, folder: str, state: Dict[str, Any], wanted: List[str]
) -> List[Dict[str, Any]]:
    from remote_train.host import commits  # noqa: PLC0415  (in the thread of its own)

    looker = commits.find_looker(root, folder, state["attempt"], wanted)
    return commits.list_checkpoints(looker, ended=state["state"] in life.FINAL)


def send_file(operations: Operations, request: Dict[str, Any]) -> Dict[str, Any]:
    """Send one file by blocks from a byte offset on, at most `limit` bytes a second of all files together.

    One that is not the `expect`ed any more is refused.
    """
    block, offset = int(request["block"]), int(request["offset"])
    if not blocks.SMALLEST <= block <= blocks.LARGEST:
        raise ValueError("a block of %d bytes" % block)
    rate = float(request.get("limit") or 0.0)
    if not 0.0 <= rate < FASTEST:
        raise ValueError("a limit of %r" % (rate,))
    pace = operations.pace = operations.pace or blocks.Pace()
    pace.rate = rate
    try:
        path = _source_path(operations, request)
        fetch = blocks.Fetch(int(request["stream"]), path, offset, block, pace)
    except (FileNotFoundError, NotADirectoryError):  # rotated away just now
        raise Refusal("no-such-file", "%s is not there any more" % request["path"]) from None
    identity = fetch.identity()
    if not 0 <= offset <= fetch.status.st_size or request.get("expect", identity) != identity:
        fetch.close()
        raise Refusal("changed", "the file is another than the one that was being fetched")
    operations.connection.add_source(fetch)
    return identity


def cancel(operations: Operations, request: Dict[str, Any]) -> Dict[str, Any]:
    """Send no more of a file that is being fetched."""
    connection = operations.connection
    found = [source for source in connection.sources if source.bulk and source.stream == request["stream"]]
    for source in found:
        connection.sources.remove(source)
        source.close()
    return {"cancelled": bool(found)}


def _source_path(operations: Operations, request: Dict[str, Any]) -> str:
    folder, path = operations.attempt_dir(request), str(request["path"])
    try:
        return files.resolve_made(folder, path, str(request.get("area", layout.CODE)))
    except ValueError as error:
        raise Refusal("no-such-file", str(error)) from None
