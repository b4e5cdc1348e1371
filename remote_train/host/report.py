"""What a training script can ask and tell us, imported as `from remote_train import report`. Standard library only.

Nothing here raises, and outside of remote-train every answer is the harmless one.
"""

from __future__ import annotations

import os

from remote_train.host import layout
from remote_train.host.steps import append, harmless, step

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Dict, List, Union

__all__ = ["checkpoint", "should_stop", "step"]

_polled = False


def should_stop() -> bool:
    """Return whether `remote-train stop` was asked for: save what you need and leave the training loop.

    A script that asks gets the whole grace to leave by itself and no SIGTERM, which would end its DataLoader workers
    before it can save. Ask on every rank, at a step's end; it costs one look at a file.
    """
    stop = os.environ.get(layout.STOP_VARIABLE)
    if not stop:
        return False
    _note_polling(stop)
    return os.path.exists(stop)


def _note_polling(stop: str) -> None:
    global _polled  # noqa: PLW0603  (said once in a process)
    if _polled:
        return
    _polled = True
    try:
        os.close(os.open(os.path.join(os.path.dirname(stop), layout.POLLED), os.O_CREAT | os.O_WRONLY, 0o600))
    except OSError:  # a full disk: then TERM comes as for everybody
        return


def checkpoint(path: Union[str, os.PathLike[str]]) -> None:
    """Say that a checkpoint, a file or a folder with all its files, is complete: it may come home at once.

    Call it on one rank, after everything of it was written and closed, and before any of it is written again. Without
    it a checkpoint comes once it has not changed for a while. A line is appended to the file that
    `$REMOTE_TRAIN_REPORT` names; a script may write it itself: {"kind": "checkpoint", "path", "files": [{"path", "size",
    "mtime_ns", "inode"}]}, paths relative to the folder that the run was started with. What lies outside of that folder
    is not reported.
    """
    report = os.environ.get(layout.REPORT_VARIABLE)
    if report:
        harmless(_checkpoint, report, path)  # where it fails, the checkpoint comes once it has settled


def _checkpoint(report: str, path: Union[str, os.PathLike[str]]) -> None:
    code = os.path.realpath(os.path.join(os.path.dirname(report), layout.CODE))
    place = os.path.realpath(os.fspath(path))
    files = _list_files(place, code) if place.startswith(code + os.sep) else []
    if files:
        append(report, {"kind": "checkpoint", "path": os.path.relpath(place, code), "files": files})


def _list_files(place: str, code: str) -> List[Dict[str, Any]]:
    names = [place] if os.path.isfile(place) else []
    for folder, _, found in os.walk(place):
        names += [os.path.join(folder, name) for name in found]
    files = []
    for name in sorted(names):
        status = os.lstat(name)
        facts = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}
        files.append(dict(facts, path=os.path.relpath(name, code)))
    return files
