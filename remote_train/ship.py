"""Get a package and its start to a host in as few flights as what is remembered allows.

With a base the host is known to hold, the manifest's delta, the new blobs, the start and the follow request leave
together. The host answers with the attempt's state, or with what it lacks, and only that is sent again.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from remote_train.errors import (
    ConnectionLost,
    NameTaken,
    PackageError,
    ProtocolError,
    RunLost,
    VerificationFailed,
)
from remote_train.listener import Silent
from remote_train.session import REQUEST_SECONDS
from remote_train.upload import Content, Upload, send_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from remote_train.listener import Listener
    from remote_train.package.packing import Package
    from remote_train.session import Session
    from remote_train.upload import Sent

ALL_AHEAD = 1 << 20
"""Batches of a package go out without waiting for one: the start is right behind them."""
START_SECONDS = 600.0

Row = list[Any]


class FactsChanged(Exception):
    """The host is not as remembered: look again and plan anew."""


class Files(Protocol):
    """Where the contents of a package come from."""

    def find(self, row: Row) -> Path:
        """Return where the contents of a row lie here; raise PackageError."""

    def check(self, rows: Iterable[Row]) -> None:
        """Raise PackageError when the contents of some rows cannot be had."""


class ProjectFiles:
    """The contents of a package that was just made of the project at `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, row: Row) -> Path:
        """Return the file of a row."""
        return self.root / str(row[0])

    def check(self, rows: Iterable[Row]) -> None:
        """They were all there a moment ago."""


class Shipment:
    """One package on its way to one host, and whatever other files the attempt begins with."""

    def __init__(
        self,
        session: Session,
        source: Path | Files,
        package: Package,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        self.session = session
        self.files: Files = ProjectFiles(source) if isinstance(source, Path) else source
        self.package = package
        self.restore: Iterable[Mapping[str, Any]] = ()
        """Files that do not belong to the package and that the host may ask for too."""
        self.meanwhile = meanwhile
        """Called while the host works on the start."""
        self.listener: Listener = Silent()
        """Is told `sending`, the bytes of files so far, once a megabyte, and of a file that is waited for."""
        self.bring_data: Callable[[Session, Sequence[str]], None] = lambda _session, _ids: None
        """Called with the ids of data folders that the host does not have."""
        self._upload = Upload(session, self._tell, self._note)
        self.asked = False
        """A start request may have left."""
        self._request: int | None = None
        self._answer: dict[str, Any] | None = None
        self._uploads: list[int] = []
        self._needed: set[str] = set()
        self._data_again = False

    def _tell(self, sent: int) -> None:
        self.listener.tell("sending", bytes=sent)

    def _note(self, text: str) -> None:
        self.listener.tell("note", text=text)

    @property
    def sent(self) -> Sent:
        """Return which files travelled."""
        return self._upload.sent

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
            self.asked = True
            self._request = number = self.session.submit("start", **message)
            following = self.session.submit("follow", **follow)
            self.meanwhile()
            self._answer = answer = self.session.wait(number, START_SECONDS)
            self._settle_uploads()
            if answer.get("changed"):
                raise FactsChanged
            if "need" not in answer:
                return {**answer, "following": self.session.wait(following)}
            self.asked, self._request, self._answer = False, None, None
            self._ignore(following)
            if answer["need"] == "data":
                self._check_data(answer["data"], message["plan"]["data"].values())
            self._send_needed(answer, rows)

    def learn_answer(self, seconds: float) -> dict[str, Any] | None:
        """Return the answer to the start that is under way, {} when none can have begun, None when nobody knows."""
        if not self.asked:
            return {}
        if self._request is not None and self._answer is None:
            with contextlib.suppress(ConnectionLost):
                self._answer = self.session.wait(self._request, seconds)
        answer = self._answer
        return {} if answer is not None and "state" not in answer else answer

    def _ignore(self, number: int) -> None:
        """The host could not follow what it did not start."""
        try:
            self.session.wait(number)
        except (ProtocolError, RunLost):
            return

    def _check_data(self, ids: Sequence[str], references: Iterable[str]) -> None:
        """Refuse to look for data that the run does not name."""
        if not ids or not set(ids) <= {reference.partition("/")[0] for reference in references}:
            raise ProtocolError(f"{self.session.host} asks for data folders that the run does not have")

    def _send_needed(self, answer: dict[str, Any], rows: Sequence[Row]) -> None:
        need = answer["need"]
        wanted = {"manifest"} if need == "manifest" else set(answer[need])
        again = bool(wanted & self._needed)
        if again and (need != "data" or self._data_again):  # a `gc --data` may have come between, once
            raise ProtocolError(f"{self.session.host} asks again for what was sent when it asked")
        self._data_again |= again
        self._needed |= wanted
        if need == "manifest" and not rows:
            raise PackageError(
                f"which files its package had is known neither here nor on {self.session.host} any more",
                hint="start a new run with `remote-train run`",
            )
        if need == "manifest":
            self._send_manifest({}, rows)
            return
        if need == "data":
            self.bring_data(self.session, answer["data"])
            return
        others = [[row["path"], "f", row["mode"], row["size"], row["sha256"]] for row in self.restore]
        found = [row for row in (*rows, *others) if row[1] == "f" and row[4] in wanted]
        if not found:
            raise ProtocolError(f"{self.session.host} asks for files that are not in the package")
        self.files.check(found)
        self._send_blobs(found)

    def _send_manifest(self, base: dict[str, Any], rows: Sequence[Row]) -> None:
        self._uploads.append(send_manifest(self.session, self.package.package_id, base, list(rows)))

    def _send_blobs(self, rows: Iterable[Row]) -> None:
        self._upload.send(
            (Content(row[4], row[3], self.files.find(row), row[0]) for row in rows), ahead=ALL_AHEAD
        )

    def _settle_uploads(self) -> None:
        """Raise what went wrong with an upload; a base that is not there any more is not wrong."""
        for number in self._uploads:
            try:
                self.session.wait(number, REQUEST_SECONDS)
            except VerificationFailed as error:
                raise PackageError(error.message, hint="start the run again") from error
        self._uploads.clear()
        self._upload.settle()


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
    """Return the start request of a first attempt, conditional on the machine being as `facts` say.

    A later one has its number put in, and what `host/order.py` wants to know of the older ones.
    """
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
