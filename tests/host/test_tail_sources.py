"""Tails of a part of an output: what is not asked for is neither read nor hashed, and an end is an end."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

from remote_train.host import wire
from remote_train.host.agent import Connection
from remote_train.host.sources import Tail

if TYPE_CHECKING:
    from pathlib import Path


def drain(tail: Tail, limit: int = 1000) -> tuple[bytes, dict[str, Any] | None]:
    """Take everything a source gives now."""
    data, end = b"", None
    while (frame := tail.produce(limit)) is not None:
        ((kind, _, payload),) = wire.Decoder().feed(frame)
        if kind == wire.DATA:
            data += payload
        else:
            end = wire.parse_object(payload)
    return data, end


def make_tail(path: Path, offset: int, **wishes: Any) -> Tail:
    tail = Tail(7, str(path), offset)
    for name, value in wishes.items():
        setattr(tail, name, value)
    return tail


def test_a_partial_tail_ends_without_a_hash(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(b"x" * 10_000)
    tail = make_tail(path, 9_000, partial=True)
    assert drain(tail) == (b"x" * 1000, None)
    with path.open("ab") as file:
        file.write(b"more")
    tail.ended = True
    assert drain(tail) == (b"more", {"length": 10_004, "sha256": None})
    assert tail.done
    assert tail.hashed == 0


def test_a_whole_tail_hashes_what_was_skipped_only_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(bytes(range(250)) * 40)
    tail = make_tail(path, 9_000)
    assert drain(tail) == (path.read_bytes()[9_000:], None)
    assert tail.hashed == 0
    tail.ended = True
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert drain(tail) == (b"", {"length": 10_000, "sha256": digest})


def test_a_tail_until_a_byte_ends_there_although_there_is_more(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(b"x" * 10_000)
    for offset, until, expected in ((0, 2500, 2500), (2500, 2500, 0), (4000, 2500, 0), (0, 99_999, 10_000)):
        tail = make_tail(path, offset, partial=True, until=until, ended=True)
        data, end = drain(tail)
        assert len(data) == expected
        assert end == {"length": offset + expected, "sha256": None}


def test_an_output_that_never_came_ends_empty(tmp_path: Path) -> None:
    tail = make_tail(tmp_path / "1.log", 0, partial=True, ended=True)
    assert drain(tail) == (b"", {"length": 0, "sha256": None})


def test_what_nobody_acknowledges_takes_no_room(tmp_path: Path) -> None:
    """An END that counted as on its way stopped a stream for good once there had been enough of them."""
    path = tmp_path / "0.log"
    path.write_bytes(b"x" * 100)
    read_fd, write_fd = os.pipe()
    connection = Connection(read_fd, write_fd)
    decoder, received, ends = wire.Decoder(), 0, 0
    for _ in range(200):
        tail = make_tail(path, 0)
        tail.ended = True
        connection.add_source(tail)
        while not tail.done or connection.pending:
            connection.write()
            for kind, _, payload in decoder.feed(os.read(read_fd, 1 << 16)):
                received += len(payload) if kind == wire.DATA else 0
                ends += kind == wire.END
            connection.feed(wire.make_ack(received, received, 0))
    for fd in (read_fd, write_fd, connection.wake_read, connection.wake_write):
        os.close(fd)
    assert (received, ends) == (200 * 100, 200)
    assert connection.credit._sent == connection.credit._acked
