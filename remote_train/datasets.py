"""Data that a run needs and its host does not have: found here, sent once per content, shared by all runs there.

Which folders these are depends on the host (hosts.toml may say where one lies already). That a host has a data folder
is remembered; one that has lost it says so at the start, and gets it again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import time
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from remote_train.config.value_rules import check_relative_folder
from remote_train.errors import PackageError, ProtocolError, UsageError
from remote_train.memory import stat_cache_path
from remote_train.package.data_folder import DataListing, DataSet, hash_data, walk_data
from remote_train.upload import PLACING_SECONDS, Content, Sent, send_contents, send_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from remote_train.config.host_spec import HostSpec
    from remote_train.listener import Listener
    from remote_train.reach import HostLink
    from remote_train.session import Session

TELL_EVERY = 0.25
"""Seconds between two words about an upload's progress."""


def choose_places(wanted: Iterable[str], hosts: Iterable[HostSpec]) -> list[str]:
    """Return the data folders that at least one of these hosts would have to be sent; raise UsageError for two in one."""
    places = list(dict.fromkeys(wanted))
    for one, other in combinations(places, 2):
        if one.startswith(other + "/") or other.startswith(one + "/"):
            raise UsageError(f"data {one} and {other} overlap", hint="name only one of them")
    return [place for place in places if any(not host.is_local and place not in host.data for host in hosts)]


def parse_place(path: str, cwd: str, root: str) -> str:
    """Return the place in the project of `--data PATH`, which is relative to the run's folder; raise UsageError."""
    full = posixpath.normpath(posixpath.join(root, cwd, path))
    try:
        return check_relative_folder(posixpath.relpath(full, root))
    except ValueError as error:
        raise UsageError(f"--data {path}: {error}", hint="name a folder or a file of the project") from error


def walk_places(root: Path, places: Iterable[str]) -> dict[str, DataListing]:
    """Look at every file of these folders; what is wrong with one matters only once a host needs it."""
    listings = {}
    for place in places:
        with contextlib.suppress(PackageError):
            listings[place] = walk_data(root, place)
    return listings


def hash_places(
    root: Path, listings: Mapping[str, DataListing], wanted: Iterable[str], host: HostSpec
) -> tuple[DataSet, ...]:
    """Name by content what of these folders a host has to be sent; raise UsageError for one that is not here, PackageError."""
    places = choose_places(wanted, [host])
    for place in places:
        if not os.path.lexists(root / place):
            raise UsageError(
                f"data {place}: {root / place}: {os.strerror(errno.ENOENT)}",
                hint=f"put it there, or say under [hosts.{host.name}.data] in hosts.toml where it lies on the host",
            )
    return tuple(
        hash_data(listings.get(place) or walk_data(root, place), stat_cache_path(root / place))
        for place in places
    )


@dataclass(frozen=True)
class Recalled:
    """The data of a run that goes on."""

    shipped: Mapping[str, str]
    """What a plan calls it, by place."""
    data: tuple[DataSet, ...]
    """What of it can be sent from here."""
    changed: tuple[str, ...]
    """Places whose data is not here any more as the run had it."""


def recall_data(root: Path, places: Iterable[str], known: Mapping[str, str]) -> Recalled:
    """Return the data that a run goes on with on a host that has to be sent it: as it had it, where that is `known`.

    Raises PackageError for data that the run was never sent, and that is not here.
    """
    shipped = {place: known[place] for place in places if place in known}
    found = []
    for place in places:
        try:
            data = hash_data(walk_data(root, place), stat_cache_path(root / place))
        except PackageError:
            if place not in known:
                raise
            continue
        if shipped.setdefault(place, data.reference) == data.reference:
            found.append(data)
    here = {data.place for data in found}
    return Recalled(shipped, tuple(found), tuple(place for place in places if place not in here))


def make_persistent(link: HostLink, root: Path, places: Iterable[str]) -> None:
    """Make the folders of a project that outlive its runs, when they are on this machine; raise PackageError."""
    for place in places if link.is_local else ():
        try:
            (root / place).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PackageError(
                f"persist {place}: {root / place}: {error.strerror}",
                hint="it has to be a folder of the project",
            ) from error


class DataSender:
    """The data of one launch, on its way to one host."""

    def __init__(self, root: Path, link: HostLink, data: Sequence[DataSet], listener: Listener) -> None:
        self.root = root
        self.note_progress: Callable[[], None] = lambda: None
        """Called when bytes have travelled."""
        self._memory = link.memory
        self._data = data
        self._listener = listener
        self._told: set[str] = set()

    def send(self, session: Session, lost: Collection[str] = ()) -> None:
        """Have the host hold all of it, but for what it is known to hold; `lost` are ids that it says it does not.

        Raises PackageError, HostSpace, ProtocolError, or ConnectionLost: call it again on another connection.
        """
        if not set(lost) <= {data.data_id for data in self._data}:  # the host has tried what it can
            raise PackageError(
                f"{session.host} does not have data that the run began with, and it is not here any more as it was",
                hint="put the data back as it was, or start a new run",
            )
        held = [] if not self._data else self._memory.read_data()
        for data in self._data:
            if data.data_id in lost or data.data_id not in held:
                self._send_one(session, data)
                self._memory.note_data(data.data_id)
                self._memory.write_base(self.root / data.place, data.data_id, data.rows)

    def _send_one(self, session: Session, data: DataSet) -> None:
        base = self._memory.read_base(self.root / data.place)
        sent = Sent()
        needed: list[str] = []
        while not (answer := self._ask(session, data)).get("here"):
            need = str(answer.get("need"))
            needed.append(need)
            if needed.count(need) > 2:
                raise ProtocolError(f"{session.host} asks for the {need} of {data.place} again and again")
            if need == "manifest":
                base = base if len(needed) == 1 else {}
                session.wait(send_manifest(session, data.data_id, base, data.rows))
            else:
                progress = self._make_progress(session, data)
                sent = send_contents(session, make_contents(data), progress, self._say)
        if sent.files:
            self._listener.tell("sent", files=sent.files, bytes=sent.bytes)

    def _ask(self, session: Session, data: DataSet) -> dict[str, Any]:
        return session.wait(session.submit("data", data=data.data_id), PLACING_SECONDS)

    def _make_progress(self, session: Session, data: DataSet) -> Callable[[int, int], None]:
        began = time.monotonic()
        first: list[int] = []
        last = 0.0

        def tell(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if not first:
                first.append(done)
                self._tell_size(session, data, total - done)
            if done > first[0]:
                self.note_progress()
            if now - last >= TELL_EVERY:
                last = now
                rate = (done - first[0]) / max(now - began, 1e-3)
                self._listener.tell("sending", bytes=done, total=total, what=data.place, rate=rate)

        return tell

    def _say(self, text: str) -> None:
        self._listener.tell("note", text=text)

    def _tell_size(self, session: Session, data: DataSet, size: int) -> None:
        """Say, once, how much is to travel."""
        if data.place not in self._told and size:
            self._told.add(data.place)
            self._listener.tell("data", place=data.place, bytes=size, host=session.host, id=data.data_id)


def make_contents(data: DataSet) -> list[Content]:
    """Return the contents of a data folder."""
    return [
        Content(str(row[4]), int(row[3]), data.base / str(row[0]), posixpath.join(data.place, str(row[0])))
        for row in data.rows
        if row[1] == "f"
    ]
