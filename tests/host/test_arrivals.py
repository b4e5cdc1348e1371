"""Contents on their way up: whole or not there, never sent twice, whatever is cut, killed, full or hostile."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from remote_train import others
from remote_train.errors import (
    ConnectionLost,
    HostSpace,
    HostUnfit,
    PackageError,
    ProtocolError,
    VerificationFailed,
)
from remote_train.host import layout
from remote_train.host.arrivals import BLOCK, MOST_PUTS, PROOF
from remote_train.upload import Content, Sent, send_contents
from tests.core.cutting_link import CuttingLink
from tests.faults.counts import PATIENT, Goal
from tests.faults.tiny_disk import tiny_tmpfs
from tests.host.account_kit import agents_of, sha256, until

if TYPE_CHECKING:
    import random

    from remote_train.session import Session
    from tests.host.account_kit import Account

pytestmark = PATIENT

FRAMES_SHARE = 1.02


def make_content(folder: Path, data: bytes, name: str = "content") -> Content:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(data)
    return Content(sha256(data), len(data), path, name)


def blob(account: Account, content: Content) -> Path:
    return Path(layout.blob_path(str(account.root), content.sha256))


def incoming(account: Account) -> list[str]:
    folder = account.root / "blobs" / "incoming"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def is_stored(account: Account, content: Content) -> bool:
    path = blob(account, content)
    return path.exists() and sha256(path.read_bytes()) == content.sha256


def send(session: Session, *contents: Content) -> Sent:
    return send_contents(session, contents, lambda _done, _total: None)


def send_by_hand(session: Session, content: Content, pieces: list[bytes], **changes: Any) -> dict[str, Any]:
    """Put what `pieces` say, as no honest laptop would, and return how far the host says it came."""
    stream = session.new_stream()
    request = {"stream": stream, "sha256": content.sha256, "size": content.size, **changes}
    session.request("put", **request)
    session.upload(stream, pieces)
    return session.request("stored", stream=stream)


def test_contents_of_all_sizes_arrive_once(account: Account, tmp_path: Path) -> None:
    sizes = [0, 1, 1000, (1 << 20) - 1, 1 << 20, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 7]
    contents = [
        make_content(tmp_path / "here", os.urandom(size), str(number)) for number, size in enumerate(sizes)
    ]
    told: list[tuple[int, int]] = []
    session = account.connect()
    sent = send_contents(session, [*contents, *contents], lambda done, total: told.append((done, total)))
    assert (sent.files, sent.bytes) == (len(sizes), sum(sizes))
    assert all(is_stored(account, content) for content in contents)
    assert told[0] == (0, sum(sizes))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert incoming(account) == []
    assert send(session, *contents) == Sent(0, 0)


@pytest.mark.parametrize(("random", "least", "most"), [(True, 1.0, 1.02), (False, 0.0, 0.1)])
def test_small_files_are_compressed_where_that_helps(
    account: Account, tmp_path: Path, random: bool, least: float, most: float
) -> None:
    bodies = [os.urandom(50_000) if random else b"%05d" % number * 10_000 for number in range(20)]
    contents = [make_content(tmp_path / "here", body, str(number)) for number, body in enumerate(bodies)]
    session = account.connect()
    counted = CountedSends(session)
    send(session, *contents)
    assert all(is_stored(account, content) for content in contents)
    assert least * 1_000_000 <= counted.bytes <= most * 1_000_000


def test_more_contents_than_one_question_holds(account: Account, tmp_path: Path) -> None:
    contents = [make_content(tmp_path / "here", b"%d" % number, str(number)) for number in range(5100)]
    session = account.connect()
    assert send(session, *contents).files == 5100
    assert send(session, *contents).files == 0


def cut_up(chance: random.Random, size: int, count: int) -> list[tuple[int | None, int | None]]:
    """Return connections that break after random numbers of bytes that go up."""
    return [(None, chance.randrange(1, 2 * size // count)) for _ in range(count)]


def test_an_upload_with_cuts_sends_hardly_a_byte_twice(account: Account, tmp_path: Path) -> None:
    size, cuts = 64 << 20, 10
    with Goal("an upload of 64 MB with random cuts", reduced=1, nightly=30) as goal:
        for trial in goal:
            with trial:
                content = make_content(tmp_path / "here", trial.chance.randbytes(size))
                link = CuttingLink(cut_up(trial.chance, size, cuts))
                sent, losses = 0, 0
                while True:
                    try:
                        session = link.connect()
                    except ConnectionLost:  # cut while the agent itself went up
                        continue
                    counted = CountedSends(session)
                    try:
                        send(session, content)
                    except ConnectionLost:
                        losses += 1
                    else:
                        break
                    finally:
                        sent += counted.bytes
                        session.close()
                    assert not blob(account, content).exists()
                assert is_stored(account, content)
                assert incoming(account) == []
                assert sent <= FRAMES_SHARE * size + losses * BLOCK
                print(f"{losses} cuts, {sent / size:.4f} of its size went up")


class CountedSends:
    """The bytes that a session sends from here on."""

    def __init__(self, session: Session) -> None:
        self.bytes = 0
        inner = session._channel.send

        def counted(data: bytes) -> None:
            self.bytes += len(data)
            inner(data)

        session._channel.send = counted  # type: ignore[method-assign]  # the channel as it is, and a count


def test_an_agent_killed_in_the_middle_costs_no_more_than_a_block(account: Account, tmp_path: Path) -> None:
    size = 32 << 20
    content = make_content(tmp_path / "here", os.urandom(size))
    session = account.connect()
    session.request("list")

    def kill(done: int, _total: int) -> None:
        if done > size // 2:
            until(lambda: held(account, content) >= size // 4, "a part of it at the host")
            for pid in agents_of(account.home):
                os.kill(pid, signal.SIGKILL)

    with pytest.raises(ConnectionLost):
        send_contents(session, [content], kill)
    there = held(account, content)
    assert there >= size // 4
    assert not blob(account, content).exists()
    assert send(account.connect(), content).bytes <= size - there + BLOCK
    assert is_stored(account, content)


def held(account: Account, content: Content) -> int:
    path = Path(layout.incoming_path(str(account.root), content.sha256))
    return path.stat().st_size if path.exists() else 0


def test_two_uploads_of_one_content_at_once_send_it_once(account: Account, tmp_path: Path) -> None:
    content = make_content(tmp_path / "here", os.urandom(6 * BLOCK))
    sent: list[Sent] = []
    sessions = [account.connect(), account.connect()]
    threads = [threading.Thread(target=lambda one=one: sent.append(send(one, content))) for one in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert is_stored(account, content)
    assert sum(item.bytes for item in sent) == content.size
    assert incoming(account) == []


def test_who_waits_for_another_says_so_and_goes_on_where_that_one_is_cut_off(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(3 * BLOCK)
    content = make_content(tmp_path / "here", data)
    first, second = account.connect(), account.connect()
    stream = first.new_stream()
    first.request("put", stream=stream, sha256=content.sha256, size=content.size)
    send_pieces(first, stream, proven(data[:BLOCK]))
    until(lambda: held(account, content) == BLOCK, "the first block")
    asked = second.request("put", stream=second.new_stream(), sha256=content.sha256, size=content.size)
    assert asked == {"stored": False, "busy": True, "offset": 0}
    monkeypatch.setattr(others, "SAY_SECONDS", 0.1)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        first.close()

    assert send_contents(second, [content], lambda _done, _total: None, say).bytes == 2 * BLOCK
    assert is_stored(account, content)
    assert [text.partition(":")[0] for text in said] == [
        f"another command is sending {content.label} to {second.host}"
    ]


def test_who_waits_for_what_comes_no_further_gives_up(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = make_content(tmp_path / "here", os.urandom(2 * BLOCK))
    first, second = account.connect(), account.connect()
    first.request("put", stream=first.new_stream(), sha256=content.sha256, size=content.size)
    monkeypatch.setattr(others, "SAY_SECONDS", 0.0)
    monkeypatch.setattr(others, "STUCK_SECONDS", 0.1)
    with pytest.raises(HostUnfit, match="nothing of it comes"):
        send(second, content)


def send_pieces(session: Session, stream: int, pieces: list[bytes]) -> None:
    """Send bytes of a stream without its END."""
    from remote_train.host import wire

    for piece in pieces:
        for begin in range(0, len(piece), wire.CHUNK):
            session._send(wire.make_frame(wire.DATA, stream, piece[begin : begin + wire.CHUNK]))


def proven(data: bytes) -> list[bytes]:
    """Return data as it travels: blocks, each with its proof."""
    digest = hashlib.sha256()
    pieces = []
    for begin in range(0, len(data), BLOCK):
        digest.update(data[begin : begin + BLOCK])
        pieces += [data[begin : begin + BLOCK], digest.digest()]
    return pieces


@pytest.mark.parametrize("size", [1000, 3 * BLOCK])
@pytest.mark.parametrize("change", ["other", "shorter", "gone"])
def test_a_file_that_changed_is_named_and_nothing_of_it_stays(
    account: Account, tmp_path: Path, change: str, size: int
) -> None:
    data = os.urandom(size)
    content = make_content(tmp_path / "here", data, "weights.bin")
    if change == "gone":
        content.path.unlink()
    else:
        content.path.write_bytes(data[:-1] + b"?" if change == "other" else data[:-1])
    session = account.connect()
    with pytest.raises(PackageError, match=r"weights\.bin"):
        send(session, content)
    session.close()
    until(lambda: not agents_of(account.home), "the agent's end")
    assert not blob(account, content).exists()
    assert [path for path in (account.root / "blobs").rglob("*") if path.is_file()] == []


def test_a_part_of_another_version_is_thrown_away_and_all_of_it_sent(
    account: Account, tmp_path: Path
) -> None:
    data = os.urandom(3 * BLOCK)
    content = make_content(tmp_path / "here", data)
    account.connect().request("list")
    part = Path(layout.incoming_path(str(account.root), content.sha256))
    part.parent.mkdir()
    part.write_bytes(bytes(BLOCK))
    assert send(account.connect(), content).bytes == 5 * BLOCK
    assert is_stored(account, content)


@pytest.mark.parametrize("there", [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 5, 3 * BLOCK, 3 * BLOCK + 1])
def test_any_part_is_gone_on_with(account: Account, tmp_path: Path, there: int) -> None:
    data = os.urandom(3 * BLOCK)
    content = make_content(tmp_path / "here", data)
    account.connect().request("list")
    part = Path(layout.incoming_path(str(account.root), content.sha256))
    part.parent.mkdir()
    part.write_bytes((data + b"more")[:there])
    good = 0 if there > len(data) else there if there == len(data) else there // BLOCK * BLOCK
    assert send(account.connect(), content).bytes == len(data) - good
    assert is_stored(account, content)


def test_a_full_disk_is_told_before_the_first_byte(account: Account, tmp_path: Path) -> None:
    with tiny_tmpfs(account.root, 16 << 20) as disk:
        session = account.connect()
        content = make_content(tmp_path / "here", os.urandom(24 << 20))
        small = [make_content(tmp_path / "here", os.urandom(BLOCK - 1), str(number)) for number in range(5)]
        for contents in ([content], small):
            with pytest.raises(HostSpace) as told:
                send(session, *contents)
            assert told.value.exit_code == 14
            assert str(account.root) in told.value.message
            assert told.value.facts["need"] == sum(item.size for item in contents)
            assert int(str(told.value.facts["have"])) <= disk.free
        assert [path for path in (account.root / "blobs").rglob("*") if path.is_file()] == []
        session.close()
        account.close()


def test_a_disk_that_fills_up_meanwhile_keeps_nothing_half_done(account: Account, tmp_path: Path) -> None:
    with tiny_tmpfs(account.root, 32 << 20) as disk:
        session = account.connect()
        content = make_content(tmp_path / "here", os.urandom(24 << 20))

        def fill(done: int, _total: int) -> None:
            if done:
                disk.fill()

        with pytest.raises(HostSpace):
            send_contents(session, [content], fill)
        assert incoming(account) == []
        disk.release()
        send(session, content)
        assert is_stored(account, content)
        session.close()
        account.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"sha256": "../../../../etc/passwd"},
        {"sha256": "A" * 64},
        {"sha256": 7},
        {"size": -1},
        {"size": 1 << 70},
        {"size": True},
        {"size": "1"},
        {"stream": "1"},
    ],
)
def test_a_put_that_makes_no_sense_is_refused(
    account: Account, tmp_path: Path, changes: dict[str, Any]
) -> None:
    content = make_content(tmp_path / "here", bytes(BLOCK))
    with pytest.raises(ProtocolError):
        send_by_hand(account.connect(), content, [], **changes)
    assert incoming(account) == []


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([], "before its last byte"),
        ([bytes(BLOCK)], "before its last byte"),
        ([bytes(BLOCK), bytes(PROOF)], "damaged"),
        ([*proven(bytes(BLOCK)), b"more"], "more bytes"),
        (proven(b"\1" * BLOCK), "other contents"),
    ],
)
def test_what_is_not_what_was_announced_is_dropped(
    account: Account, tmp_path: Path, pieces: list[bytes], words: str
) -> None:
    content = make_content(tmp_path / "here", bytes(BLOCK))
    with pytest.raises(VerificationFailed, match=words):
        send_by_hand(account.connect(), content, pieces)
    assert incoming(account) == [] or held(account, content) == BLOCK  # more bytes: those before are good
    assert not blob(account, content).exists()


def test_one_connection_begins_only_so_many_contents(account: Account) -> None:
    session = account.connect()
    for number in range(MOST_PUTS):
        session.request("put", stream=session.new_stream(), sha256=sha256(b"%d" % number), size=BLOCK)
    with pytest.raises(ProtocolError, match="at once"):
        session.request("put", stream=session.new_stream(), sha256=sha256(b"more"), size=BLOCK)


def test_questions_that_make_no_sense_are_refused(account: Account) -> None:
    questions: tuple[Any, ...] = (["0" * 64], [["0" * 63, 1]], [["0" * 64, -1]], {}, [["0" * 64, 1]] * 5001)
    for contents in questions:
        with pytest.raises(ProtocolError):
            account.connect().request("lack", contents=contents)
    with pytest.raises(ProtocolError):
        account.connect().request("stored", stream=5)
