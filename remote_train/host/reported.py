"""What a training has reported of its checkpoints: `report.jsonl`, a line each, read as it grows."""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Dict, Mapping, Tuple

    Identity = Tuple[int, int, int]

PIECE = 16 << 20
"""Bytes taken at once; a line that is longer is none of ours."""
KEPT = 10_000


def identify(status: os.stat_result) -> Identity:
    """Return what of a file a report names: size, time of change in nanoseconds, inode."""
    return (status.st_size, status.st_mtime_ns, status.st_ino)


class Reports:
    """The newest report of each path."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._offset = 0
        self._files: Dict[str, Dict[str, Identity]] = {}

    def refresh(self) -> None:
        """Read what was appended since."""
        try:
            with open(self._path, "rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:  # the training has cut it
                    self._offset = 0
                file.seek(self._offset)
                data = file.read(PIECE)
        except OSError:
            return
        whole = data.rfind(b"\n") + 1 or (len(data) if len(data) == PIECE else 0)
        self._offset += whole
        for line in data[:whole].split(b"\n"):
            self._take(line)

    def _take(self, line: bytes) -> None:
        if b"checkpoint" not in line:  # of the others there are many
            return
        try:
            said = json.loads(line.decode("utf-8"))
            if said["kind"] != "checkpoint":
                return
            files = {
                str(file["path"]): (int(file["size"]), int(file["mtime_ns"]), int(file["inode"]))
                for file in said["files"]
            }
        except (ValueError, TypeError, KeyError, RecursionError):  # a script may write there what it likes
            return
        self._files.pop(str(said["path"]), None)
        self._files[str(said["path"])] = files
        if len(self._files) > KEPT:
            del self._files[next(iter(self._files))]

    def covers(self, unit: str, files: Mapping[str, os.stat_result]) -> bool:
        """Tell whether a unit, or a folder around it, was reported with exactly these files as they are now."""
        path = unit
        while path:
            said = self._files.get(path)
            if said and all(said.get(name) == identify(status) for name, status in files.items()):
                return True
            path = path.rpartition("/")[0]
        return False
