"""Get a package and its start to a host in as few flights as what is remembered allows.

With a base the host is known to hold, the manifest's delta, the new blobs, the start and the follow request leave
together. The host answers with the attempt's state, or with what it lacks, and only that is sent again.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from remote_train.errors import NameTaken, PackageError, ProtocolError, RunLost, VerificationFailed
from remote_train.host.manifest_format import make_delta
from remote_train.session import REQUEST_SECONDS, compress_pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from remote_train.package.packing import Package
    from remote_train.session import Session

BATCH_ITEMS = 2000
BATCH_BYTES = 32 << 20
LARGE = 1 << 20
START_SECONDS = 600.0

Row = list[Any]


class FactsChanged(Exception):
    """The host is not as remembered: look again and plan anew."""


class Shipment:
    """One package on its way to one host."""

    def __init__(
        self, session: Session, root: Path, package: Package, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        self.session = session
        self.root = root
        self.package = package
        self.meanwhile = meanwhile
        """Called while the host works on the start."""
        self.progress: Callable[[int], None] = lambda _sent: None
        """Called with the bytes of files sent so far, once a megabyte."""
        self.sent_bytes = 0
        self.sent_files = 0
        self._uploads: list[int] = []
        self._needed: set[str] = set()

    def start(self, base: dict[str, Any], message: dict[str, Any], follow: dict[str, Any]) -> dict[str, Any]:
        """Start the attempt and return its state; the follow request is on its way behind it.

        Raises FactsChanged, what the host refuses, or ConnectionLost; may be repeated with the same message.
        """
        rows = self.package.rows
        if base.get("package") != self.package.package_id:
            self._send_manifest(base, rows)
            if base:
                held = {row[4] for row in base["rows"] if row[1] == "f"}
                self._send_blobs([row for row in rows if row[1] == "f" and row[4] not in held])
        while True:
            number = self.session.submit("start", **message)
            following = self.session.submit("follow", **follow)
            self.meanwhile()
            answer = self.session.wait(number, START_SECONDS)
            self._settle_uploads()
            if answer.get("changed"):
                raise FactsChanged
            if "need" not in answer:
                return {**answer, "following": self.session.wait(following)}
            self._ignore(following)
            self._send_needed(answer, rows)

    def _ignore(self, number: int) -> None:
        """The host could not follow what it did not start."""
        try:
            self.session.wait(number)
        except (ProtocolError, RunLost):
            return

    def _send_needed(self, answer: dict[str, Any], rows: Sequence[Row]) -> None:
        manifest = answer["need"] == "manifest"
        wanted = {"manifest"} if manifest else set(answer["blobs"])
        if wanted & self._needed:
            raise ProtocolError(f"{self.session.host} asks again for what was sent when it asked")
        self._needed |= wanted
        if manifest:
            self._send_manifest({}, rows)
            return
        found = [row for row in rows if row[1] == "f" and row[4] in wanted]
        if not found:
            raise ProtocolError(f"{self.session.host} asks for files that are not in the package")
        self._send_blobs(found)

    def _send_manifest(self, base: dict[str, Any], rows: Sequence[Row]) -> None:
        delta = make_delta(base.get("rows", []), list(rows))
        stream = self.session.new_stream()
        package, old = self.package.package_id, base.get("package")
        self._uploads.append(self.session.submit("manifest", stream=stream, package=package, base=old))
        self.session.upload(stream, compress_pieces([json.dumps(delta).encode("ascii")]))

    def _send_blobs(self, rows: Iterable[Row]) -> None:
        for batch, packed in make_batches(rows):
            stream = self.session.new_stream()
            items = [[row[4], row[3]] for row in batch]
            self._uploads.append(self.session.submit("blobs", stream=stream, items=items, zlib=packed))
            pieces = self._read_pieces(batch)
            self.session.upload(stream, compress_pieces(pieces) if packed else pieces)
            self.sent_files += len(batch)

    def _read_pieces(self, batch: Sequence[Row]) -> Iterator[bytes]:
        """Yield the files' bytes; raise PackageError for one that is not what was hashed any more."""
        for row in batch:
            digest = hashlib.sha256()
            left = row[3]
            try:
                with (self.root / row[0]).open("rb") as file:
                    while left > 0 and (data := file.read(min(left, LARGE))):
                        digest.update(data)
                        left -= len(data)
                        self._count(len(data))
                        yield data
            except OSError as error:
                raise PackageError(f"{row[0]}: {error.strerror}", hint="start the run again") from error
            if digest.hexdigest() != row[4]:
                raise PackageError(f"{row[0]} changed while it was sent", hint="start the run again")

    def _count(self, size: int) -> None:
        """Note what was sent; tell it at every megabyte."""
        before = self.sent_bytes // LARGE
        self.sent_bytes += size
        if self.sent_bytes // LARGE > before:
            self.progress(self.sent_bytes)

    def _settle_uploads(self) -> None:
        """Raise what went wrong with an upload; a base that is not there any more is not wrong."""
        for number in self._uploads:
            try:
                self.session.wait(number, REQUEST_SECONDS)
            except VerificationFailed as error:
                raise PackageError(error.message, hint="start the run again") from error
        self._uploads.clear()


def make_batches(rows: Iterable[Row]) -> Iterator[tuple[list[Row], bool]]:
    """Yield batches of distinct contents and whether to compress: large files go alone and as they are."""
    batch: list[Row] = []
    size = 0
    seen: set[str] = set()
    for row in rows:
        if row[4] in seen:
            continue
        seen.add(row[4])
        if row[3] >= LARGE:
            yield [row], False
            continue
        if len(batch) >= BATCH_ITEMS or size + row[3] > BATCH_BYTES:
            yield batch, True
            batch, size = [], 0
        batch.append(row)
        size += row[3]
    if batch:
        yield batch, True


def refuse_taken_name(session: Session, run: str) -> None:
    """Raise NameTaken when the host has a run of this name: asked before anything of the package travels.

    Of two laptops that ask at once both may hear that it is free; the claim then lets one start.
    """
    if session.request("state", run=run).get("state") != "unknown":
        raise NameTaken(
            f"{session.host}: there is a run named {run} on this host",
            hint="choose another --name, or leave it out",
        )


def make_start_message(
    run: str, token: str, plan: dict[str, Any], facts: dict[str, Any], secrets: dict[str, str]
) -> dict[str, Any]:
    """Return the start request of a first attempt, conditional on the machine being as `facts` say."""
    python = facts["python"]
    expect = {
        "python": python["path"],
        "torch_file": python.get("torch_file"),
        "fingerprint": facts["fingerprint"],
    }
    return {
        "run": run,
        "attempt": 1,
        "token": token,
        "plan": plan,
        "expect": expect,
        "secrets": secrets,
    }
