"""The fake's own promises: where it breaks, and what each side then sees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.errors import ConnectionLost, Unreachable
from remote_train.transport.fake import FakeTransport, Pipe
from remote_train.transport.local import LocalTransport
from tests.sshd import wait_until


def echo(_command: str, pipe: Pipe) -> None:
    while data := pipe.receive():
        pipe.send(data)


def recite(command: str, pipe: Pipe) -> None:
    for letter in command:
        pipe.send(letter.encode())


def read_all(transport: FakeTransport, command: str) -> bytes:
    channel, data = transport.open(command), b""
    while chunk := channel.receive(10):
        data += chunk
    return data


@given(text=st.text("abc", min_size=1, max_size=20), cut=st.integers(1, 25))
def test_exactly_the_bytes_before_the_cut_arrive(text: str, cut: int) -> None:
    transport = FakeTransport(recite).cut_after(cut, "down")
    assert read_all(transport, text) == text[:cut].encode()
    assert read_all(transport, text) == text.encode(), "the channel after the cut is whole"
    assert transport.commands == [text, text]


def test_sending_over_the_cut_is_a_lost_connection() -> None:
    heard = []

    def listen(_command: str, pipe: Pipe) -> None:
        heard.append(pipe.receive_exactly(10))

    channel = FakeTransport(listen).cut_after(6, "up").open("")
    channel.send(b"abc")
    with pytest.raises(ConnectionLost):
        channel.send(b"defg")
    assert channel.receive(10) == b""
    wait_until(lambda: heard, "the host to hear the end")
    assert heard == [b"abcdef"]


def test_both_directions_count_together() -> None:
    channel = FakeTransport(echo).cut_after(6).open("")
    channel.send(b"abcd")
    assert channel.receive(10) == b"ab"
    assert channel.receive(10) == b""


def test_opening_can_fail_as_asked() -> None:
    transport = FakeTransport(echo).refuse_next(Unreachable("gone")).refuse_next(ConnectionLost("cut"))
    for error in (Unreachable, ConnectionLost):
        with pytest.raises(error):
            transport.open("x")
    assert transport.open("x").receive(0) is None


def test_the_host_can_wait_read_exactly_and_warn() -> None:
    def host(_command: str, pipe: Pipe) -> None:
        assert pipe.receive(0) is None
        pipe.send(b"go")
        pipe.warn(b"beware")
        pipe.send(pipe.receive_exactly(2) + b"|" + (pipe.receive() or b""))

    channel = FakeTransport(host).open("")
    assert channel.receive(10) == b"go"
    channel.send(b"abcd")
    assert channel.receive(10) == b"ab|cd"
    assert channel.receive(10) == b""
    assert channel.stderr_tail() == b"beware"


def test_a_local_child_that_ignores_its_end_is_terminated() -> None:
    channel = LocalTransport().open("trap '' HUP; echo up; exec sleep 600 > /dev/null")
    assert channel.receive(10) == b"up\n"
    channel.close()
    wait_until(lambda: channel._child.poll() is not None, "the child to be terminated")
    assert channel._child.returncode == -15
