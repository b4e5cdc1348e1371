"""Write what a host sends of an attempt into this laptop's mirror, byte for byte, and check it at the end."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, BinaryIO

from remote_train.errors import VerificationFailed

if TYPE_CHECKING:
    from remote_train.records import Attempt

BLOCK = 1 << 20


class Mirror:
    """The mirrors of one attempt's outputs; without the lock (`writing=False`) only offsets are kept."""

    def __init__(self, attempt: Attempt, names: list[str], *, writing: bool) -> None:
        self.attempt = attempt
        self.writing = writing
        self.failure: OSError | None = None
        self.offsets = {name: attempt.offset(name) for name in names}
        self.ahead: set[str] = set()
        """Outputs that come from further on than their mirror reaches, and are not written: it stays a prefix."""
        self._files: dict[str, BinaryIO] = {}

    def skip_to(self, name: str, offset: int) -> None:
        """Go on with an output from further on; its mirror is completed another time."""
        self.offsets[name] = offset
        self.ahead.add(name)

    def holds(self, name: str) -> bool:
        """Tell whether what came of an output can be read again here."""
        return self.writing and self.failure is None and name not in self.ahead

    def write(self, name: str, data: bytes) -> None:
        """Append to an output's mirror. A full disk here stops the mirror, never the stream."""
        if self.holds(name):
            try:
                _write_all(self._open(name), data)
            except OSError as error:
                self.failure = error
        self.offsets[name] += len(data)

    def _open(self, name: str) -> BinaryIO:
        file = self._files.get(name)
        if file is None:
            path = self.attempt.output(name)
            file = self._files[name] = path.open("ab", buffering=0)
        return file

    def verify(self, name: str, summary: dict[str, Any]) -> None:
        """Compare a mirror with the length and SHA-256 of the host's file; raise VerificationFailed."""
        if not self.holds(name):
            return
        path = self.attempt.output(name)
        if not path.exists():
            path.touch()
        length, digest = path.stat().st_size, hash_file(path)
        if (length, digest) != (summary.get("length"), summary.get("sha256")):
            aside = path.with_name(path.name + ".damaged")
            self.close()
            path.rename(aside)
            raise VerificationFailed(
                f"{path} is not what the host has ({length} bytes here, {summary.get('length')} there)",
                hint=f"it was set aside as {aside.name}; `remote-train logs` fetches it anew",
            )

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Write everything or raise OSError: a nearly full disk takes a part first, and says so only by a number."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def hash_file(path: Any) -> str:  # noqa: ANN401  (str or Path)
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:  # noqa: PTH123  (takes both)
        return hashlib.file_digest(file, "sha256").hexdigest()
