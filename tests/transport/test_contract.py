"""What every transport promises, over a real sshd, a real child and the fake."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from remote_train.errors import ConnectionLost
from remote_train.transport.fake import FakeTransport, Pipe
from remote_train.transport.local import LocalTransport
from remote_train.transport.paramiko_ssh import ParamikoTransport
from tests.sshd import openssh, read_to_end, running_master, running_sshd, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from remote_train.transport import Channel, Transport

PATIENCE = 30.0


def run_shell(command: str, pipe: Pipe) -> None:
    """A fake host that runs commands for real."""
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(["/bin/sh", "-c", command], **streams) as child:  # type: ignore[call-overload]
        threads = [
            threading.Thread(target=copy_in, args=(pipe, child.stdin)),
            threading.Thread(target=copy_stderr, args=(pipe, child.stderr)),
        ]
        for thread in threads:
            thread.start()
        try:
            while data := os.read(child.stdout.fileno(), 65536):
                pipe.send(data)
        finally:
            child.wait()
            threads[1].join()


def copy_in(pipe: Pipe, stdin: BinaryIO) -> None:
    try:
        while data := pipe.receive():
            stdin.write(data)
            stdin.flush()
        stdin.close()
    except BrokenPipeError:
        return


def copy_stderr(pipe: Pipe, stderr: BinaryIO) -> None:
    while data := os.read(stderr.fileno(), 65536):
        pipe.warn(data)


@pytest.fixture(
    params=[
        "paramiko",
        "paramiko step by step",
        "openssh",
        pytest.param("openssh shared", marks=pytest.mark.slow),
        "local",
        "fake",
    ]
)
def transport(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Transport]:
    if request.param.startswith("paramiko"):
        with running_sshd(tmp_path_factory.mktemp("sshd")) as sshd:
            made = ParamikoTransport(sshd.target())
            made._early = request.param == "paramiko"
            yield made
            made.close()
        return
    if request.param.startswith("openssh"):
        with running_sshd(tmp_path_factory.mktemp("sshd")) as sshd, contextlib.ExitStack() as stack:
            if request.param == "openssh shared":
                stack.enter_context(running_master(sshd))
            by_ssh = openssh(sshd, f"ControlPath {sshd.folder}/master" if "shared" in request.param else "")
            yield by_ssh
            by_ssh.close()
        return
    other: Transport = LocalTransport() if request.param == "local" else FakeTransport(run_shell)
    yield other
    other.close()


def read_exactly(channel: Channel, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        chunk = channel.receive(PATIENCE)
        assert chunk, f"{len(data)} of {count} bytes came, then {chunk!r}"
        data += chunk
    return bytes(data)


def test_bytes_are_exact_both_ways_at_once(transport: Transport) -> None:
    sent = os.urandom(8 << 20)
    channel = transport.open("cat")
    sender = threading.Thread(target=channel.send, args=(sent,))
    sender.start()
    assert read_exactly(channel, len(sent)) == sent
    sender.join()


def test_single_bytes_arrive_in_order(transport: Transport) -> None:
    channel = transport.open("cat")
    sent = bytes(range(256))
    for byte in sent:
        channel.send(bytes([byte]))
    assert read_exactly(channel, 256) == sent


def test_several_threads_may_send(transport: Transport) -> None:
    channel, lock = transport.open("cat"), threading.Lock()

    def send(letter: bytes) -> None:
        for _ in range(50):
            with lock:
                channel.send(letter * 1000)

    threads = [threading.Thread(target=send, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    echoed = read_exactly(channel, 150_000)
    assert {echoed[i : i + 1000] for i in range(0, 150_000, 1000)} == {b"a" * 1000, b"b" * 1000, b"c" * 1000}
    for thread in threads:
        thread.join()


def test_nothing_comes_within_the_timeout(transport: Transport) -> None:
    channel = transport.open("echo ready; cat")
    assert read_exactly(channel, 6) == b"ready\n"
    assert channel.receive(0) is None
    assert channel.receive(0.05) is None
    channel.send(b"x")
    assert channel.receive(PATIENCE) == b"x"


def test_the_end_of_the_stream_is_told_again_and_again(transport: Transport) -> None:
    channel = transport.open("printf bye; exit 7")
    assert read_to_end(channel) == b"bye"
    assert channel.receive(0) == b""
    assert channel.receive(PATIENCE) == b""


def test_a_command_may_speak_before_it_listens(transport: Transport) -> None:
    channel = transport.open("echo before; head -c 5; echo; echo after")
    assert read_exactly(channel, 7) == b"before\n"
    channel.send(b"12345")
    assert read_to_end(channel) == b"12345\nafter\n"


def test_the_command_is_one_shell_string(transport: Transport) -> None:
    assert (
        read_to_end(transport.open("""x='a  b'; printf '%s|' "$x" \\$HOME é""")) == "a  b|$HOME|é|".encode()
    )


def test_the_tail_of_stderr_is_kept(transport: Transport) -> None:
    channel = transport.open("head -c 300000 /dev/zero | tr '\\0' e >&2; echo END >&2; echo out")
    assert read_to_end(channel) == b"out\n"
    tail = channel.stderr_tail()
    assert len(tail) == 8192
    assert tail.endswith(b"eeeeEND\n")


def test_closing_ends_the_command(transport: Transport) -> None:
    channel = transport.open("echo $$; exec cat")
    process = int((channel.receive(PATIENCE) or b"").split()[0])
    channel.close()
    channel.close()
    wait_until(lambda: is_gone(process), f"process {process} to end")
    assert channel.receive(0) == b""
    with pytest.raises(ConnectionLost):
        channel.send(b"x")


def is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def test_closing_wakes_who_waits(transport: Transport) -> None:
    channel = transport.open("sleep 60")
    heard: list[bytes | None] = []
    waiter = threading.Thread(target=lambda: heard.append(channel.receive(60)))
    waiter.start()
    channel.close()
    waiter.join(PATIENCE)
    assert heard == [b""]


def test_sending_to_a_command_that_has_ended_is_a_lost_connection(transport: Transport) -> None:
    channel = transport.open("exit 0")
    assert read_to_end(channel) == b""
    with pytest.raises(ConnectionLost):
        channel.send(bytes(64 << 20))  # more than any buffer on the way holds


def test_what_was_sent_before_the_end_can_still_be_read(transport: Transport) -> None:
    channel = transport.open("head -c 3000000 /dev/zero")
    wait_until(lambda: channel.receive(0) != b"", "the first bytes")
    channel = transport.open("head -c 3000000 /dev/zero")
    assert len(read_to_end(channel)) == 3_000_000


def test_channels_come_one_after_the_other(transport: Transport) -> None:
    first = transport.open("cat")
    first.send(b"1")
    assert read_exactly(first, 1) == b"1"
    second = transport.open("cat")
    assert first.receive(0) == b"", "a second open closes the first"
    second.send(b"2")
    assert read_exactly(second, 1) == b"2"
    second.close()
    assert read_to_end(transport.open("echo third")) == b"third\n"


def test_a_transport_can_be_closed_twice_and_used_again(transport: Transport) -> None:
    transport.close()
    channel = transport.open("cat")
    transport.close()
    transport.close()
    assert channel.receive(PATIENCE) == b""
    assert read_to_end(transport.open("echo again")) == b"again\n"
