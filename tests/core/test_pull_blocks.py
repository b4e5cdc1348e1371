"""A file by blocks: what is verified stays, across connections and across processes, and nothing else does."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_train import blocks as blocks_module
from remote_train import reconnect as reconnecting
from remote_train.blocks import SMALLEST, Blocks, Damaged, Fetcher
from remote_train.errors import PullIncomplete, VerificationFailed
from remote_train.host import blocks as host_blocks
from remote_train.host import wire
from remote_train.host.blocks import Fetch
from remote_train.landing import PARTIAL
from remote_train.partial import JOURNAL, Partial, PullInterrupted, name_partial, pulling_alone
from remote_train.pull import Pull, PullWish
from remote_train.records import Run
from tests.core.cutting_link import CuttingLink, Ears
from tests.host.account_kit import Account, sha256, until

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 256 << 10
SIZE = 20 * BLOCK + 12_345
MAKING = f"import random; open('big.pt', 'wb').write(random.Random(7).randbytes({SIZE}))"
PULLING = """
import sys
from pathlib import Path
from remote_train import blocks
from remote_train.pull import Pull, PullWish
from remote_train.records import Run
from tests.core.cutting_link import CuttingLink, Ears

blocks.BLOCK = int(sys.argv[2])
run, link = Run("run", Path(sys.argv[1])), CuttingLink()
Pull(run, 1, link, link.connect(), Ears()).bring(PullWish(limit=2e6))
"""


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "BLOCK", BLOCK)
    monkeypatch.setattr(reconnecting, "FIRST_PAUSE", 0.005)
    monkeypatch.setattr(reconnecting, "LONGEST_PAUSE", 0.02)


@pytest.fixture
def run(account: Account) -> Run:
    started = account.start(MAKING)
    assert started.end()["code"] == 0
    return account.client_run(started)


def made(account: Account) -> Path:
    return account.root / "runs" / "run" / "attempts" / "1" / "code" / "big.pt"


class CountingLink(CuttingLink):
    """Counts what has come down."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.bytes = 0

    def connect(self) -> Any:
        session = super().connect()
        channel = session._channel
        receive = channel.receive

        def count(timeout: float) -> bytes | None:
            data = receive(timeout)
            self.bytes += len(data or b"")
            return data

        channel.receive = count  # type: ignore[method-assign]
        return session


def pull_all(run: Run, link: CuttingLink | None = None) -> Pull:
    link = link or CuttingLink()
    pull = Pull(run, 1, link, link.connect(), Ears())
    try:
        pull.bring(PullWish())
    finally:
        pull.session.close()
    return pull


def kill_in_the_middle(run: Run, share: float = 0.3) -> Path:
    """Kill a pull when so much is here; return its partial file."""
    argv = [sys.executable, "-c", PULLING, str(run.folder), str(BLOCK)]
    journal = run.folder / JOURNAL
    with subprocess.Popen(argv, cwd=Path(__file__).parents[2]) as process:
        until(
            lambda: journal.exists() and journal.read_bytes().count(b"\n") > share * SIZE / BLOCK,
            "some verified blocks",
        )
        process.kill()
    (partial,) = [path for path in run.files.iterdir() if path.name.endswith(PARTIAL)]
    return partial


def good(run: Run) -> int:
    """Return how many bytes the journal vouches for."""
    lines = (run.folder / JOURNAL).read_bytes().split(b"\n")[1:-1]
    return int(json.loads(lines[-1])[0])


def test_a_killed_pull_is_gone_on_with_at_its_last_block(account: Account, run: Run) -> None:
    kill_in_the_middle(run)
    assert not (run.files / "big.pt").exists()
    held = good(run)
    assert held >= 0.3 * SIZE - BLOCK
    link = CountingLink()
    pull_all(run, link)
    assert (run.files / "big.pt").read_bytes() == made(account).read_bytes()
    assert link.bytes < SIZE - held + 20_000
    assert [path.name for path in run.files.iterdir()] == ["big.pt"]
    assert not (run.folder / JOURNAL).exists()


def test_a_partial_file_that_was_damaged_is_cut_at_its_last_good_block(account: Account, run: Run) -> None:
    partial = kill_in_the_middle(run)
    with partial.open("r+b") as file:
        file.seek(3 * BLOCK + 17)
        file.write(b"\0\0\0\0\0")
    link = CountingLink()
    pull_all(run, link)
    assert (run.files / "big.pt").read_bytes() == made(account).read_bytes()
    assert SIZE - 3 * BLOCK < link.bytes < SIZE - 3 * BLOCK + 20_000


def test_a_partial_file_that_became_a_link_is_not_written_to(
    account: Account, run: Run, tmp_path: Path
) -> None:
    partial = kill_in_the_middle(run)
    precious = tmp_path / "precious"
    precious.write_bytes(partial.read_bytes())
    before = precious.read_bytes()
    partial.unlink()
    partial.symlink_to(precious)
    pull_all(run)
    assert precious.read_bytes() == before
    assert (run.files / "big.pt").read_bytes() == made(account).read_bytes()


@pytest.mark.parametrize("how", ["in place", "renamed over"])
def test_another_file_of_the_same_name_is_begun_anew(account: Account, run: Run, how: str) -> None:
    kill_in_the_middle(run)
    new = os.urandom(SIZE)
    old = made(account).stat()
    if how == "in place":
        made(account).write_bytes(new)
    else:  # of the same size and time: only the inode tells
        (made(account).parent / "tmp").write_bytes(new)
        os.utime(made(account).parent / "tmp", ns=(old.st_atime_ns, old.st_mtime_ns))
        (made(account).parent / "tmp").replace(made(account))
    pull_all(run)
    assert (run.files / "big.pt").read_bytes() == new


def test_what_is_not_wanted_any_more_goes(account: Account, run: Run) -> None:
    partial = kill_in_the_middle(run)
    (made(account).parent / "other.pt").write_bytes(b"other")
    link = CuttingLink()
    pull = Pull(run, 1, link, link.connect(), Ears())
    pull.bring(PullWish(match=("other.pt",)))
    pull.session.close()
    assert not partial.exists()
    assert [path.name for path in run.files.iterdir()] == ["other.pt"]


def test_a_line_that_breaks_before_a_block_is_whole_gets_shorter_blocks(
    account: Account, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks_module, "BLOCK", 64 << 20)
    link = CountingLink([(700_000, None)] * 60)
    pull_all(run, link)
    assert (run.files / "big.pt").read_bytes() == made(account).read_bytes()
    assert link.connections < 30


def test_the_bytes_of_cuts_are_few(account: Account, run: Run) -> None:
    chance = random.Random(3)
    cuts = [(chance.randrange(BLOCK, 3 * BLOCK), None) for _ in range(8)]
    link = CountingLink(cuts)
    pull_all(run, link)
    assert (run.files / "big.pt").read_bytes() == made(account).read_bytes()
    assert link.bytes <= 1.02 * SIZE + 8 * BLOCK


def test_a_block_that_is_not_what_was_stated_ends_the_pull(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Blocks.take

    def damage(self: Blocks, data: memoryview) -> None:
        real(self, memoryview(bytes(data[:-1]) + bytes([data[-1] ^ 1])) if self.come > 2 * BLOCK else data)

    monkeypatch.setattr(Blocks, "take", damage)
    with pytest.raises(VerificationFailed, match="another SHA-256"):
        pull_all(run)
    assert list(run.files.iterdir()) == []


class Wire:
    """What a Fetch sends, given to Blocks piece by piece."""

    def __init__(self, folder: Path, data: bytes) -> None:
        self.path = folder / "source"
        self.path.write_bytes(data)
        os.utime(self.path, (1000, 1000))
        self.folder = folder
        self.data = data

    def fetch(self, offset: int, block: int) -> Fetch:
        return Fetch(5, str(self.path), offset, block)

    def carry(
        self, partial: Partial, block: int, chance: random.Random, budget: int | None
    ) -> dict[str, Any] | None:
        """Carry frames until the END, or until so many bytes have come; return what END says."""
        fetch = self.fetch(partial.good, block)
        taken = Blocks(partial, fetch.status.st_size, block)
        decoder = wire.Decoder()
        try:
            while True:
                frame = fetch.produce(chance.randrange(1, 3000))
                for kind, _, payload in decoder.feed(frame or b""):
                    if kind == wire.END:
                        return {**wire.parse_object(payload), "whole": taken.is_whole()}
                    if budget is not None and len(payload) > budget:
                        return None
                    budget = None if budget is None else budget - len(payload)
                    taken.take(memoryview(payload))
        finally:
            fetch.close()


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(0, 40_000),
    block=st.sampled_from([4096, 5000, 8192, 65536]),
    seed=st.integers(0, 1 << 30),
    cuts=st.lists(st.integers(0, 30_000), max_size=5),
)
def test_whatever_the_sizes_and_cuts_the_file_is_the_file(
    size: int, block: int, seed: int, cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("wire")
    chance = random.Random(seed)
    there = Wire(folder, chance.randbytes(size))
    with pulling_alone(Run("run", folder), int) as partials:
        place = folder / "place"
        opened = os.open(folder, os.O_RDONLY)
        with partials.writing(place, opened, {"path": "source", "attempt": 1}) as partial:
            partial.identify(there.fetch(0, block).identity())
            for budget in cuts:
                there.carry(partial, block, chance, budget)
                partial.rewind()
                assert partial.good == size or partial.good % block == 0
            summary = there.carry(partial, block, chance, None)
            partial.path.replace(place)
        os.close(opened)
    digest = sha256(there.data)
    assert summary == {"length": size, "sha256": digest, "changed": False, "whole": True}
    assert place.read_bytes() == there.data


def test_more_than_there_is_is_refused(tmp_path: Path) -> None:
    there = Wire(tmp_path, b"x" * 5000)
    folder = os.open(tmp_path, os.O_RDONLY)
    partial = Partial(
        {"partial": str(name_partial(tmp_path / "place")), "identity": None, "path": "source"},
        tmp_path / JOURNAL,
        folder,
    )
    partial.identify(there.fetch(0, 4096).identity())
    there.carry(partial, 4096, random.Random(1), None)
    with pytest.raises(Damaged):
        Blocks(partial, 5000, 4096).take(memoryview(b"more"))
    partial.close()
    os.close(folder)


@pytest.fixture
def fetching(tmp_path: Path) -> Iterator[tuple[Path, Fetch]]:
    path = tmp_path / "source"
    path.write_bytes(b"old" * 100_000)
    os.utime(path, (1000, 1000))
    fetch = Fetch(5, str(path), 0, 4096)
    yield path, fetch
    fetch.close()


def read_end(fetch: Fetch) -> tuple[int, dict[str, Any]]:
    """Return how many bytes of DATA came, and what END says."""
    decoder, count = wire.Decoder(), 0
    while True:
        for kind, _, payload in decoder.feed(fetch.produce(1000) or b""):
            if kind == wire.END:
                return count, wire.parse_object(payload)
            count += len(payload)


@pytest.mark.parametrize("size", [100_000, 10, 200_000])
def test_a_file_that_is_rewritten_ends_with_the_block_that_shows_it(
    fetching: tuple[Path, Fetch], size: int
) -> None:
    path, fetch = fetching
    assert fetch.produce(5) is not None
    path.write_bytes(b"new" * size)
    count, end = read_end(fetch)
    assert end["changed"] is True
    assert count <= 2 * 4096


def test_what_cannot_be_read_is_the_end_of_that_file_alone(fetching: tuple[Path, Fetch]) -> None:
    _, fetch = fetching
    with open("/proc/self/mem", "rb") as unreadable:  # noqa: PTH123  (of which nothing at 0 can be read: EIO)
        os.dup2(unreadable.fileno(), fetch.fd or -1)
    assert read_end(fetch) == (0, {"error": os.strerror(errno.EIO)})
    assert fetch.done
    assert wire.parse_object(fetch._fail(OSError(errno.ESTALE, "stale"))[wire.HEADER.size :]) == {
        "changed": True
    }


def test_what_its_host_cannot_read_ends_a_pull_with_the_reason(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(*_: object) -> dict[str, Any]:
        return {"error": "Input/output error", "whole": False}

    monkeypatch.setattr(Fetcher, "_take", take)
    with pytest.raises(PullIncomplete, match=r"local cannot read big\.pt: Input/output error"):
        pull_all(run)


def test_nothing_is_read_of_a_file_while_its_time_could_hide_a_write(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"old")
    written = time.time_ns() | 1  # no whole second
    os.utime(path, ns=(written, written))
    fetch = Fetch(5, str(path), 0, 4096)
    while fetch.produce(1000) is None:
        assert not fetch.done
        time.sleep(0.001)
    assert time.time_ns() - fetch.status.st_mtime_ns >= 50_000_000
    fetch.close()


def test_rewriting_within_one_tick_never_yields_a_mix(tmp_path: Path) -> None:
    """Two contents of one size, written back to back all the time: what comes with `changed: false` is one of them."""
    path = tmp_path / "source"
    whole = 0
    chance = random.Random(5)
    for _ in range(60):
        path.write_bytes(b"a" * 20_000)
        fetch = Fetch(5, str(path), 0, 4096)
        come = b""
        writes = chance.randrange(12)
        decoder = wire.Decoder()
        end: dict[str, Any] | None = None
        turn = 0
        while end is None:
            if turn == writes:
                path.write_bytes(b"b" * 20_000)
                writes = -1
            frame = fetch.produce(4096)
            turn += frame is not None
            for kind, _, payload in decoder.feed(frame or b""):
                if kind == wire.END:
                    end = wire.parse_object(payload)
                elif len(payload) > 32:
                    come += payload
        if not end["changed"]:
            whole += 1
            assert set(come) in ({ord("a")}, {ord("b")})
    assert whole > 0


def test_files_of_one_connection_keep_a_pace_together(tmp_path: Path) -> None:
    """From the first byte on, small files too: a quarter second of the link for 250 KB at 1 MB/s."""
    pace, began, sizes = host_blocks.Pace(), time.monotonic(), []
    pace.rate = 1e6
    for number in range(10):
        path = tmp_path / f"{number}"
        path.write_bytes(b"x" * 25_000)
        os.utime(path, (1000, 1000))
        fetch = Fetch(5, str(path), 0, 4096, pace)
        while not fetch.done:
            frame = fetch.produce(1 << 20)
            sizes += [len(frame)] if frame else []
            time.sleep(max(0.0, fetch.due - time.monotonic()))
    assert 0.25 - 2 * host_blocks.TURN_SECONDS <= time.monotonic() - began < 5.0
    assert max(sizes) <= 1e6 * host_blocks.TURN_SECONDS + wire.HEADER.size


def test_a_limit_holds_from_the_first_second_on_the_link(run: Run) -> None:
    """Nothing is sent ahead of it: not a window, and not what the laptop may hold unread."""
    link = CountingLink()
    pull = Pull(run, 1, link, link.connect(), Ears())
    began, before = time.monotonic(), link.bytes
    came: list[float] = []

    def look() -> None:
        seconds = time.monotonic() - began
        came.append((link.bytes - before) / (seconds + 0.2))
        if seconds > 0.7:
            raise PullInterrupted

    pull.fetcher.look = look
    with pytest.raises(PullInterrupted):
        pull.bring(PullWish(limit=1e6))
    pull.session.close()
    assert max(came) <= 1.3e6
    assert link.bytes - before >= 0.2e6


def test_blocks_can_be_as_small_as_a_laptop_asks_for() -> None:
    assert SMALLEST >= 4096
