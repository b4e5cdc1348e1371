"""Real agents without the price of an interpreter each, over a wire that is cut where a trial says.

    with running_farm(folder) as farm:
        link = FarmLink(farm, host, [Break(up=120), Break(down=45)])     # its first connections

A process that has our shipped program imported forks one agent per connection: 5 ms instead of 80. What begins with the
marker and READY is the real conversation; the bootstrap before it is cut in other tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from remote_train.errors import ConnectionLost
from remote_train.reach import HostLink
from remote_train.session import Session, open_session
from tests.core.cutting_link import CutChannel
from tests.host.account_kit import the_agent, until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from remote_train.config.host_spec import HostSpec

_FARM = """
import os, signal, socket, sys
sys.path.insert(0, sys.argv[1])
from remote_train.host import agent, commands, facts, files, fingerprint, inotify, snapshot, supervisor, system
import shutil, subprocess
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[2])
server.listen(64)
def collect(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
signal.signal(signal.SIGCHLD, collect)
while True:
    wire, _ = server.accept()
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        server.close()
        nonce = b""
        while not nonce.endswith(b"\\n"):
            nonce += wire.recv(1)
        os.dup2(wire.fileno(), 0)
        os.dup2(wire.fileno(), 1)
        wire.close()
        agent.main(nonce.decode().strip())
    wire.close()
"""


@dataclass(frozen=True)
class Farm:
    """A running farm, and a folder that is quick to sync: the trials' state roots lie in it."""

    process: subprocess.Popen[bytes]
    place: Path
    folder: Path

    def agents(self) -> list[int]:
        """Return the agents that live; a supervisor was one before it took another name."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        names = {}
        for child in children:
            with contextlib.suppress(OSError):
                names[int(child)] = Path(f"/proc/{child}/comm").read_text()
        return [pid for pid, name in names.items() if name != "remote-train\n"]


@contextlib.contextmanager
def running_farm(home: Path) -> Iterator[Farm]:
    """Run a farm whose agents have this HOME until the block ends."""
    shelf = Path("/dev/shm")  # a disk that is shared takes 50 ms to sync, and what is tested here is no disk
    folder = Path(tempfile.mkdtemp(prefix="remote-train-", dir=shelf if shelf.is_dir() else None))
    program = folder / "agent"
    for name, text in json.loads(the_agent().source).items():
        path = program / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    place = folder / "farm.sock"
    argv = [sys.executable, "-I", "-S", "-c", _FARM, str(program), str(place)]
    process = subprocess.Popen(argv, env={"HOME": str(home), "PATH": "/usr/bin:/bin"})
    try:
        until(place.exists, "the farm's socket")
        yield Farm(process, place, folder)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


class FarmChannel:
    """A connection to an agent of the farm."""

    def __init__(self, farm: Farm, command: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(farm.place))
        found = re.search(r"[0-9a-f]{64} ([0-9a-f]{16}) ", command)
        assert found is not None, command
        self._socket.sendall(found[1].encode() + b"\n")

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ConnectionLost(f"farm: {error.strerror}") from error

    def receive(self, timeout: float) -> bytes | None:
        try:
            ready, _, _ = select.select([self._socket], [], [], timeout)
            return self._socket.recv(1 << 20) if ready else None
        except (OSError, ValueError):
            return b""

    def stderr_tail(self) -> bytes:
        return b""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@dataclass(frozen=True)
class Break:
    """How a connection is lost: after so many bytes down, or up, or when its agent is killed."""

    down: int | None = None
    up: int | None = None
    after_start: int = 0
    """`down` and `kill` count from the moment when so many start requests have been sent; 0: from the beginning."""
    kill: float | None = None
    """Seconds after which the agent is killed."""
    instead_of: bytes | None = None
    """The connection is lost when a frame with this is about to be sent."""


class FaultyChannel(CutChannel):
    """A channel that counts what passes, and is lost where it is told to be."""

    def __init__(self, farm: Farm, inner: FarmChannel, plan: Break) -> None:
        at_once = plan.after_start == 0
        super().__init__(inner, plan.down if at_once else None, plan.up)  # type: ignore[arg-type]  # as good as a local one
        self._farm = farm
        self._plan = plan
        self.down = self.up = self.starts = 0
        self.answer = b""
        """What came after the last start request."""

    def send(self, data: bytes) -> None:
        if self._plan.instead_of is not None and self._plan.instead_of in data:
            self._lose()
        if not self._lost:
            self.up += len(data)
        super().send(data)
        if b'"op":"start"' in data:
            self.starts += 1
            self.answer = b""
            if self.starts == self._plan.after_start:
                self._strike()

    def _strike(self) -> None:
        if self._plan.kill is not None:
            time.sleep(self._plan.kill)  # the moment of the blow is the trial's
            for agent in self._farm.agents():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(agent, signal.SIGKILL)
        elif self._plan.down == 0:
            self._lose()
        else:
            self._down = self._plan.down

    def receive(self, timeout: float) -> bytes | None:
        data = super().receive(timeout)
        self.down += len(data or b"")
        self.answer = (self.answer + (data or b""))[:8192]
        return data


class FarmTransport:
    name = "box"

    def __init__(self, farm: Farm, plan: Break) -> None:
        self._farm = farm
        self._plan = plan
        self.channel: FaultyChannel | None = None

    def open(self, command: str) -> FaultyChannel:
        self.channel = FaultyChannel(self._farm, FarmChannel(self._farm, command), self._plan)
        return self.channel

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()


class FarmLink(HostLink):
    """A way to the farm; its first connections are cut as told, later ones live."""

    def __init__(self, farm: Farm, host: HostSpec, breaks: Iterable[Break] = ()) -> None:
        super().__init__(host, the_agent(), None, [sys.executable])
        self.farm = farm
        self.breaks = deque(breaks)
        self.transports: list[FarmTransport] = []

    def dial(self) -> None:
        """There is nothing to knock at."""

    def connect(self) -> Session:
        transport = FarmTransport(self.farm, self.breaks.popleft() if self.breaks else Break())
        self.transports.append(transport)
        session = open_session(transport, self.agent, sys.executable)
        session.submit("open", state_dir=self.host.state_dir)
        return session
