"""Hostile SSH servers: the right exit code at every stage, in time, and never a word to one with a wrong key."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest

from remote_train import reconnect, session
from remote_train.config.host_spec import HostSpec
from remote_train.errors import ConnectionGivenUp, ConnectionLost, RemoteTrainError
from remote_train.host import wire
from remote_train.listener import Silent
from remote_train.reach import HostLink
from remote_train.reconnect import Patience
from remote_train.transport import login
from remote_train.transport.known_hosts import make_fingerprint
from tests.faults.hostile_cases import CASES, EVIL
from tests.faults.hostile_ssh import (
    RAW,
    Twisted,
    run_command,
    serving,
    serving_raw,
    write_key,
)
from tests.host.account_kit import account, the_agent

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from tests.faults.hostile_ssh import Process

__all__ = ["account"]

# What the twisted servers leave behind in this process is theirs; the laptop's side is closed in `try_host`.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

LOGIN = 2.5
DEADLINE = 15.0


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "LOGIN_SECONDS", LOGIN)
    monkeypatch.setattr(session, "BOOTSTRAP_SECONDS", 4.0)
    monkeypatch.setattr(session, "REQUEST_SECONDS", 4.0)
    monkeypatch.setattr(wire, "SILENCE_SECONDS", 4.0)
    monkeypatch.setattr(wire, "HEARTBEAT_SECONDS", 0.5)
    monkeypatch.setattr(reconnect, "FIRST_PAUSE", 0.02)


class Laptop:
    """A home with a key, and a way to a port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_key(folder / "id")
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")

    def link(self, port: int) -> HostLink:
        pin = make_fingerprint(self.host_key.public_data)
        spec = HostSpec(
            "box",
            ("127.0.0.1",),
            port=port,
            identity_file=str(self.folder / "id"),
            host_key=pin,
            device="cpu",
        )
        return HostLink(spec, the_agent(), None, [])


@pytest.fixture
def laptop(tmp_path: Path, account: Any) -> Laptop:
    del account  # a HOME of its own
    return Laptop(tmp_path)


def try_host(link: HostLink) -> tuple[int, str]:
    """Ask something simple; return the exit code a command would have, and what it would say."""
    began = time.monotonic()
    try:
        opened = link.connect()
        try:
            opened.request("state", run="nobody")
        finally:
            opened.close()
    except (RemoteTrainError, ConnectionLost) as error:
        told = error if isinstance(error, RemoteTrainError) else ConnectionGivenUp(str(error))
        code, words = told.exit_code, f"{told.message}\n{told.hint}"
    else:
        code, words = 0, ""
    assert time.monotonic() - began < DEADLINE
    assert len(words) < 50_000
    return code, words


@pytest.mark.parametrize("name", RAW)
def test_a_server_of_raw_bytes(name: str, laptop: Laptop) -> None:
    talk, codes = RAW[name]
    with serving_raw(talk) as port:
        code, words = try_host(laptop.link(port))
    assert code in codes, words


# ---- asyncssh, with one thing twisted ----


async def refuse() -> bool:
    return False


async def wait_for_ever() -> bool:
    await asyncio.sleep(60)
    return True


async def leave() -> bool:
    raise asyncssh.DisconnectError(11, f"{EVIL} go away")


async def end_at_once(process: Process) -> None:
    process.exit(0)


async def lie(process: Process) -> None:
    process.stdout.write(b"all is well\n")
    process.exit(0)


async def never_say_a_word(_process: Process) -> None:
    await asyncio.sleep(60)


async def flood_stderr(process: Process) -> None:
    for _ in range(2000):
        process.stderr.write(EVIL.encode() * 1000)
        await process.stderr.drain()
    process.exit(1)


async def flood_stdout(process: Process) -> None:
    for _ in range(2000):
        process.stdout.write(b"motd " * 10_000)
        await process.stdout.drain()


async def eof_and_stay(process: Process) -> None:
    process.stdout.write_eof()
    await asyncio.sleep(60)


async def flood_stderr_beside(process: Process) -> None:
    process.stderr.write(b"warning: " * 5000)
    await run_command(process)


def close_channel(process: Process) -> Coroutine[Any, Any, None]:
    async def act() -> None:
        process.close()

    return act()


async def cut_after_ready(process: Process) -> None:
    process.stdout.write(b"\0RT1 " + (process.command or "").split()[-2].encode() + b" READY\n")
    await process.stdout.drain()
    process.channel.get_connection().abort()


async def ready_and_junk(process: Process) -> None:
    process.stdout.write(
        b"\0RT1 " + (process.command or "").split()[-2].encode() + b" READY\n" + b"\xff" * 4000
    )
    await asyncio.sleep(60)


def refuse_channel() -> Any:
    raise asyncssh.ChannelOpenError(1, EVIL)


async def never_open() -> Any:
    await asyncio.sleep(60)


class Deaf(asyncssh.SSHServerSession[bytes]):
    """Refuses every command."""

    def exec_requested(self, command: str) -> bool:
        del command
        return False


def send_ignored(connection: asyncssh.SSHServerConnection) -> None:
    for _ in range(500):
        connection.send_debug(EVIL)


TWISTED: dict[str, Twisted] = {
    "an honest server": Twisted({0}),
    "a key that is refused": Twisted({12}, auth=refuse),
    "a key that is never answered": Twisted({30}, auth=wait_for_ever),
    "a farewell at the login": Twisted({12, 30}, auth=leave),
    "a channel that is refused": Twisted({13, 30}, session=refuse_channel),
    "a channel that is never opened": Twisted({30}, session=never_open),
    "a command that is refused": Twisted({13}, session=Deaf),
    "a command that ends at once": Twisted({13}, process=end_at_once),
    "a command that lies": Twisted({13}, process=lie),
    "a command that says nothing": Twisted({13}, process=never_say_a_word),
    "a command that floods stderr": Twisted({13}, process=flood_stderr),
    "a command that floods stdout": Twisted({13}, process=flood_stdout),
    "an EOF, and a command that stays": Twisted({13}, process=eof_and_stay),
    "a channel that closes": Twisted({13}, process=close_channel),
    "cut after READY": Twisted({30}, process=cut_after_ready),
    "READY and junk": Twisted({60}, process=ready_and_junk),
    "an agent beside a flood of stderr": Twisted({0}, process=flood_stderr_beside),
    "a storm of new keys": Twisted({0}, options={"rekey_bytes": 1024}),
    "a new key every moment": Twisted({0, 30}, options={"rekey_seconds": 0.01}),
    "a window of 400 bytes": Twisted({0}, options={"window": 400, "max_pktsize": 200}),
    "packets of 4 MB": Twisted({0}, options={"window": 1 << 30, "max_pktsize": 1 << 22}),
    "debug messages of escapes": Twisted({0, 30}, connected=send_ignored),
    "a login banner of escapes": Twisted({12}, auth=refuse, connected=lambda c: c.send_auth_banner(EVIL)),
}


@pytest.mark.parametrize("name", TWISTED)
def test_a_server_with_one_thing_twisted(name: str, laptop: Laptop) -> None:
    case = TWISTED[name]
    with serving(case, laptop.host_key) as (port, ran):
        code, words = try_host(laptop.link(port))
    assert code in case.codes, words
    assert len(ran) <= 1
    if code == 0:
        assert ran


def test_a_wrong_key_in_a_reconnect_ends_it_and_is_told_nothing(laptop: Laptop) -> None:
    with serving(Twisted({0}), laptop.host_key) as (port, _):
        link = laptop.link(port)
        link.connect().close()
    other = asyncssh.generate_private_key("ssh-ed25519")
    with serving(Twisted({11}), other, port) as (_, ran), pytest.raises(RemoteTrainError) as refused:
        reconnect.reconnect(
            link, ConnectionLost("cut"), Patience("run", 5.0, Silent()), lambda _session: None
        )
    assert refused.value.exit_code == 11
    assert ran == []


def test_a_refused_login_in_a_reconnect_ends_it(laptop: Laptop) -> None:
    with serving(Twisted({0}), laptop.host_key) as (port, _):
        link = laptop.link(port)
        link.connect().close()
    with (
        serving(Twisted({12}, auth=refuse), laptop.host_key, port) as (_, ran),
        pytest.raises(RemoteTrainError) as no,
    ):
        reconnect.reconnect(
            link, ConnectionLost("cut"), Patience("run", 5.0, Silent()), lambda _session: None
        )
    assert no.value.exit_code == 12
    assert ran == []


def test_the_kinds_are_counted() -> None:
    kinds = len(CASES) + len(RAW) + len(TWISTED)
    print(f"kinds of nonsense: {len(CASES)} of an agent, {len(RAW) + len(TWISTED)} of an SSH server")
    assert kinds >= 60
