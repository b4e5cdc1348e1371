"""Write what a host sends of an attempt into this laptop's mirror, byte for byte, and check it at the end."""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING, Any, BinaryIO

from remote_train.errors import LocalSpace, VerificationFailed
from remote_train.host import layout
from remote_train.private import open_append
from remote_train.records import make_local_space

if TYPE_CHECKING:
    from pathlib import Path

    from remote_train.records import Attempt

BLOCK = 1 << 20
LOOK_SECONDS = 1.0
"""Between two looks whether the files are still where they were; one that was removed takes bytes all the same."""


class Mirror:
    """The mirrors of one attempt's outputs; without the lock (`writing=False`) only offsets are kept."""

    def __init__(self, attempt: Attempt, names: list[str], *, writing: bool) -> None:
        self.attempt = attempt
        self.writing = writing
        self.failure: LocalSpace | None = None
        """Why the mirror stopped short; its files are a prefix of the host's then, and complete themselves later."""
        self.offsets = {name: attempt.offset(name) for name in names}
        self.ahead: set[str] = set()
        """Outputs that come from further on than their mirror reaches, and are not written: it stays a prefix."""
        self.lost: set[str] = set()
        """Outputs of which this mirror has more than their host, which lost the rest: left as they are."""
        self.removed = False
        """Somebody has removed the files, or moved them away."""
        self.told = False
        """The user knows of that."""
        self._files: dict[str, BinaryIO] = {}
        self._next_look = time.monotonic() + LOOK_SECONDS

    def skip_to(self, name: str, offset: int) -> None:
        """Go on with an output from further on; its mirror is completed another time."""
        self.offsets[name] = offset
        self.ahead.add(name)

    def holds(self, name: str) -> bool:
        """Tell whether what came of an output can be read again here."""
        return self.writing and self.failure is None and name not in self.ahead | self.lost

    def write(self, name: str, data: bytes) -> None:
        """Append to an output's mirror. A full disk here stops the mirror, never the stream."""
        if self.holds(name):
            try:
                _write_all(self._open(name), data)
            except OSError as error:
                self._stop(self.attempt.output(name), error)
            if self._next_look <= time.monotonic():
                self.look()
        self.offsets[name] += len(data)

    def look(self) -> None:
        """Stop writing if the files are not where they were."""
        self._next_look = time.monotonic() + LOOK_SECONDS
        for name, file in self._files.items():
            if not _is_at(file, self.attempt.output(name)):
                self._note_removed()

    def _note_removed(self) -> None:
        self.removed = True
        self.fail(LocalSpace(f"files in {self.attempt.folder} were removed", path=str(self.attempt.folder)))

    def _stop(self, path: Path, error: OSError) -> None:
        """Stop writing because of an error; a folder that is not there any more is the reason for any."""
        if not self.attempt.folder.is_dir():
            self._note_removed()
        self.fail(make_local_space(path, error))

    def keep_lost(self, name: str, size: int) -> str | None:
        """Take notice that a host has only `size` bytes of an output left; return which it lost, in words."""
        held = self.offsets.get(name, 0)
        if not 0 <= size < held:
            return None
        self.lost.add(name)
        self.offsets[name] = size
        return f"bytes {size:,} to {held:,} of {_describe_output(name)}"

    def fail(self, error: LocalSpace) -> None:
        """Stop writing; the first cause is the one that is told."""
        self.failure = self.failure or error

    def keep(self, name: str, record: dict[str, Any]) -> None:
        """Keep one of the host's records beside the mirrors; where that cannot be, the stream goes on."""
        if not self.writing or self.failure is not None:
            return
        try:
            self.attempt.write(name, record)
        except LocalSpace as error:
            if not self.attempt.folder.is_dir():
                self._note_removed()
            self.fail(error)

    def make_failure(self, run: str) -> LocalSpace | None:
        """Return what the user is told at the end if the mirror is short."""
        if self.failure is None:
            return None
        need = sum(max(0, end - self.attempt.offset(name)) for name, end in self.offsets.items())
        room = "" if self.removed else f"free {need:,} bytes there, then "
        return LocalSpace(
            f"the mirror in {self.attempt.folder} is incomplete, {need:,} bytes are missing: {self.failure.message}",
            hint=f"{room}`remote-train logs {run}` completes it",
            need=need,
        )

    def _open(self, name: str) -> BinaryIO:
        file = self._files.get(name)
        if file is None:
            path = self.attempt.output(name)
            file = self._files[name] = open_append(path)
        return file

    def verify(self, name: str, summary: dict[str, Any]) -> None:
        """Compare a mirror with the length and SHA-256 of the host's file; raise VerificationFailed."""
        if self.writing:
            self.look()
        if not self.writing or self.failure is not None or name in self.ahead:
            return
        if name in layout.SCRIPTS_OWN:
            return  # it may have been rewritten after it was sent
        path = self.attempt.output(name)
        try:
            if not path.exists():
                open_append(path).close()
            limit = self.offsets[name] if name in self.lost else path.stat().st_size
            length, digest = limit, hash_file(path, limit)
        except OSError as error:
            self._stop(path, error)
            return
        if (length, digest) != (summary.get("length"), summary.get("sha256")):
            raise self._set_aside(path, f"{length} bytes here, {summary.get('length')} there")

    def _set_aside(self, path: Path, difference: str) -> VerificationFailed:
        aside = path.with_name(path.name + ".damaged")
        self.close()
        try:
            path.rename(aside)
        except OSError:
            hint = f"move {path} away; `remote-train logs` fetches it anew then"
        else:
            hint = f"it was set aside as {aside.name}; `remote-train logs` fetches it anew"
        return VerificationFailed(f"{path} is not what the host has ({difference})", hint=hint)

    def close(self) -> None:
        """Close the files."""
        for name, file in self._files.items():
            try:
                file.close()
            except OSError as error:
                self.fail(make_local_space(self.attempt.output(name), error))
        self._files.clear()


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Tell whether an open file is what lies at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # a disk that does not even answer: the next write says more
        return True


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Write everything or raise OSError: a nearly full disk takes a part first, and says so only by a number."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _describe_output(name: str) -> str:
    return f"rank {name}'s output" if name.isdigit() else f"the {name}'s records"


def hash_file(path: Any, limit: int | None = None) -> str:  # noqa: ANN401  (str, Path or descriptor)
    """Return the SHA-256 of a file, or of its first `limit` bytes; a descriptor is closed."""
    with open(path, "rb") as file:  # noqa: PTH123  (takes all three)
        if limit is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        while limit and (data := file.read(min(BLOCK, limit))):
            digest.update(data)
            limit -= len(data)
        return digest.hexdigest()
