"""A way to the account's own machine whose connections break after given numbers of bytes, in either direction."""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING, Any

from remote_train.config.host_spec import make_local
from remote_train.errors import ConnectionLost
from remote_train.reach import HostLink
from remote_train.session import Session, open_session
from remote_train.transport.local import LocalTransport
from tests.host.account_kit import the_agent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from remote_train.transport.local import LocalChannel


class CutChannel:
    """A local channel that is lost once so many bytes have come down, or gone up."""

    def __init__(self, inner: LocalChannel, down: int | None, up: int | None) -> None:
        self._inner = inner
        self._down = down
        self._up = up
        self._lost = False

    def send(self, data: bytes) -> None:
        if self._lost:
            raise ConnectionLost("cut")
        if self._up is not None:
            data, self._up = data[: self._up], self._up - len(data)
        self._inner.send(data)
        if self._up is not None and self._up <= 0:
            self._lose()
            raise ConnectionLost("cut on the way up")

    def receive(self, timeout: float) -> bytes | None:
        if self._lost:
            raise ConnectionLost("cut")
        data = self._inner.receive(timeout)
        if data and self._down is not None:
            data, self._down = data[: self._down], self._down - len(data)
            if self._down <= 0:
                self._lose()
        return data

    def _lose(self) -> None:
        self._lost = True
        self._inner.close()

    def stderr_tail(self) -> bytes:
        return b"" if self._lost else self._inner.stderr_tail()

    def close(self) -> None:
        self._inner.close()


class CutTransport:
    name = "local"

    def __init__(self, down: int | None, up: int | None) -> None:
        self._cut = (down, up)
        self._inner = LocalTransport()

    def open(self, command: str) -> CutChannel:
        return CutChannel(self._inner.open(command), *self._cut)

    def close(self) -> None:
        self._inner.close()


class CuttingLink(HostLink):
    """Cuts the first connections as told, each (bytes down, bytes up); later ones live."""

    def __init__(self, cuts: Iterable[tuple[int | None, int | None]] = ()) -> None:
        super().__init__(make_local(), the_agent(), None, [sys.executable])
        self.cuts = deque(cuts)
        self.connections = 0

    def connect(self) -> Session:
        self.connections += 1
        down, up = self.cuts.popleft() if self.cuts else (None, None)
        session = open_session(CutTransport(down, up), self.agent, sys.executable)
        session.submit("open", state_dir=None)
        return session


class Ears:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.ranks: dict[int, bytearray] = {}
        self.told: list[tuple[str, dict[str, Any]]] = []

    def output(self, rank: int, data: bytes) -> None:
        self.heard += data
        self.ranks.setdefault(rank, bytearray()).extend(data)

    def tell(self, kind: str, **facts: Any) -> None:
        self.told.append((kind, facts))

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.told]
