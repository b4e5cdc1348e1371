"""Following through lost connections: the mirror is the host's file, byte for byte, and memory stays flat."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remote_train import reconnect as reconnecting
from remote_train.errors import ConnectionGivenUp, ConnectionLost, ProtocolError, RunLost, VerificationFailed
from remote_train.follow import OUTPUTS_ALWAYS, Following, Wish
from remote_train.host import files, layout
from remote_train.mirror import Mirror, hash_file
from remote_train.outcome import make_verdict
from tests.core.cutting_link import CuttingLink, Ears
from tests.host.account_kit import agents_of, sha256, until

if TYPE_CHECKING:
    from tests.host.account_kit import Account, Started

ODD_CHUNKS = """
import os, random, sys
chance = random.Random(int(sys.argv[1]))
left = 8_000_000
while left:
    size = min(left, chance.choice((1, 7, 61, 1000, 4099, 65537)))
    os.write(chance.choice((1, 2)), chance.randbytes(size))
    left -= size
os.write(1, b"the end")
sys.exit(4)
"""


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnecting, "FIRST_PAUSE", 0.005)
    monkeypatch.setattr(reconnecting, "LONGEST_PAUSE", 0.02)


def make_following(account: Account, started: Started, link: CuttingLink, **changes: Any) -> Following:
    run = account.client_run(started)
    wish = Wish(run, 1, ["0", *OUTPUTS_ALWAYS], {0})
    for key, value in changes.items():
        setattr(wish, key, value)
    return Following(wish, link, Ears(), writing=True)


def same(started: Started, following: Following) -> bool:
    """Tell whether every mirror is the host's file."""
    mirror = following.wish.run.attempt(1)
    pairs = [
        (started.folder / "ranks" / "0.log", mirror.output("0")),
        (started.folder / layout.CLOCK, mirror.output("clock")),
    ]
    return all(hash_file(there) == hash_file(here) for there, here in pairs)


@pytest.mark.parametrize("seed", [11, 12])
def test_thirty_cuts_lose_and_repeat_nothing(account: Account, seed: int) -> None:
    chance = random.Random(seed)
    cuts: list[tuple[int | None, int | None]] = [
        (chance.choice((chance.randrange(1, 300), chance.randrange(1, 90_000))), None) for _ in range(26)
    ]
    cuts += [(None, chance.randrange(1, 350)) for _ in range(6)]
    chance.shuffle(cuts)
    link = CuttingLink(cuts)
    started = account.start(ODD_CHUNKS, str(seed))
    following = make_following(account, started, link)
    outcome = following.run()
    assert following.session is not None
    following.session.close()
    assert not link.cuts, "the output was too short for all the cuts"
    assert link.connections >= 31
    assert outcome.exit is not None
    assert outcome.exit["code"] == 4
    assert same(started, following)
    ears = following.listener
    assert isinstance(ears, Ears)
    assert sha256(bytes(ears.heard)) == sha256(started.output())
    assert bytes(ears.heard).endswith(b"the end")
    assert following.wish.run.attempt(1).read(layout.EXIT) == {**outcome.exit, "format": 1}


@pytest.mark.parametrize("down", [1, 20, 40, 200, 600])
def test_a_cut_in_the_bootstrap_is_a_lost_connection_like_any_other(account: Account, down: int) -> None:
    started = account.start("print('hello')")
    started.end()
    following = make_following(account, started, CuttingLink([(down, None)] * 3))
    assert following.run().state == "ended"
    assert same(started, following)


def take_once(following: Following) -> None:
    """Follow on one connection, without coming back."""
    following.begin(following.link.connect())
    following._take_until_end()


def test_a_mirror_that_is_there_is_gone_on_with(account: Account) -> None:
    started = account.start(ODD_CHUNKS, "1")
    started.end()
    first = make_following(account, started, CuttingLink([(700_000, None)]), give_up=0.0)
    run = first.wish.run
    with pytest.raises(ConnectionLost):
        take_once(first)
    first.mirror.close()
    held = run.attempt(1).offset("0")
    assert 0 < held < 700_000
    ears = Ears()
    second = Following(Wish(run, 1, ["0", *OUTPUTS_ALWAYS], {0}), CuttingLink(), ears, writing=True)
    second.run()
    assert same(started, second)
    assert bytes(ears.heard) == started.output()[held:]


def test_a_second_follower_shows_and_writes_nothing(account: Account) -> None:
    started = account.start("print('x' * 5000)")
    started.end()
    run = account.client_run(started)
    with run.writing() as first, run.writing() as second:
        assert (first, second) == (True, False)
        ears = Ears()
        following = Following(Wish(run, 1, ["0", "clock"], {0}), CuttingLink(), ears, writing=second)
        assert following.run().state == "ended"
    assert bytes(ears.heard) == started.output()
    assert not run.attempt(1).output("0").exists()
    with run.writing() as again:
        assert again


def test_following_without_waiting_ends_at_what_is_there(account: Account) -> None:
    started = account.start(
        "import time; print('x' * 100000, flush=True); print('on', flush=True); time.sleep(600)"
    )
    started.says(b"on")
    following = make_following(account, started, CuttingLink(), until_end=False)
    assert following.run().state == "running"
    assert following.wish.run.attempt(1).output("0").read_bytes() == started.output()


def test_the_end_comes_while_it_is_followed(account: Account) -> None:
    """The training waits for a file, which appears after its first line was shown."""
    script = "import os, sys, time\nprint('first', flush=True)\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)\nprint('last')"
    go = account.home / "go"
    started = account.start(script, str(go))
    following = make_following(account, started, CuttingLink())
    following.on_data = lambda name, data: go.touch() if name == "0" and b"first" in data else None
    outcome = following.run()
    assert outcome.exit is not None
    assert outcome.exit["code"] == 0
    assert same(started, following)


def test_a_run_without_its_supervisor_is_followed_and_then_lost(account: Account) -> None:
    script = "import os, sys, time\nprint('on', flush=True)\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)\nprint('last')"
    go = account.home / "go"
    started = account.start(script, str(go))
    started.says(b"on")
    started.kill_supervisor()
    following = make_following(account, started, CuttingLink())
    following.on_data = lambda name, _data: go.touch() if name == "0" else None
    outcome = following.run()
    assert (outcome.state, outcome.exit) == ("lost", None)
    assert following.wish.run.attempt(1).output("0").read_bytes() == b"on\nlast\n"
    assert isinstance(make_verdict("run", "local", outcome), RunLost)


def test_giving_up_says_that_the_run_goes_on(account: Account) -> None:
    started = account.start("import time; print('on', flush=True); time.sleep(600)")
    started.says(b"on")

    class Gone(CuttingLink):
        def connect(self) -> Any:
            raise ConnectionLost("no route")

    following = make_following(account, started, Gone(), give_up=0.1)
    with pytest.raises(ConnectionGivenUp, match="the run goes on"):
        following.run()
    assert started.state()["state"] == "running"


def peak_of(pid: int | str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def test_200_megabytes_pass_with_flat_memory(account: Account) -> None:
    script = "import os\npiece = os.urandom(1 << 20)\nfor n in range(200): os.write(1, piece)"
    started = account.start(script)
    started.end()
    following = make_following(account, started, CuttingLink(), shown=set())
    session = following.link.connect()
    session.request("list")
    [agent] = agents_of(account.home)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far: proc(5)
    before = peak_of("self"), peak_of(agent)
    peaks = []

    def look(_name: str, _data: bytes) -> None:
        peaks.append(following.mirror.offsets["0"])
        if len(peaks) % 50 == 0:
            assert peak_of(agent) - before[1] < 64 << 20

    following.on_data = look
    following.begin(session)
    assert following.run().state == "ended"
    assert peak_of("self") - before[0] < 64 << 20
    assert peaks[-1] == 200 << 20
    session.close()
    assert same(started, following)


def test_several_ranks_come_each_into_their_own_mirror(account: Account) -> None:
    started = account.start("print('rank 0')")
    started.end()
    (started.folder / "ranks" / "1.log").write_bytes(b"rank 1\nmore")
    following = make_following(account, started, CuttingLink(), outputs=["0", "1", "clock"], shown={1})
    following.run()
    ears = following.listener
    assert isinstance(ears, Ears)
    assert {rank: bytes(data) for rank, data in ears.ranks.items()} == {1: b"rank 1\nmore"}
    mirror = following.wish.run.attempt(1)
    assert (mirror.output("0").read_bytes(), mirror.output("1").read_bytes()) == (
        b"rank 0\n",
        b"rank 1\nmore",
    )
    assert mirror.ranks() == [0, 1]


def test_a_damaged_mirror_is_set_aside_and_fetched_anew(account: Account) -> None:
    started = account.start("print('x' * 5000)")
    started.end()
    following = make_following(account, started, CuttingLink())
    path = following.wish.run.attempt(1).output("0")
    path.write_bytes(b"y" * 100)
    with pytest.raises(VerificationFailed) as caught:
        Following(following.wish, CuttingLink(), Ears(), writing=True).run()
    assert "set aside" in str(caught.value.hint)
    assert path.with_name("0.log.damaged").read_bytes().startswith(b"y" * 100)
    again = Following(following.wish, CuttingLink(), Ears(), writing=True)
    assert again.run().state == "ended"
    assert same(started, again)


def test_a_mirror_longer_than_the_hosts_file_is_an_error_and_no_loop(account: Account) -> None:
    started = account.start("print('x')")
    started.end()
    following = make_following(account, started, CuttingLink())
    following.wish.run.attempt(1).output("0").write_bytes(b"z" * 100)
    with pytest.raises((ProtocolError, VerificationFailed)):
        Following(following.wish, CuttingLink(), Ears(), writing=True).run()


def test_a_write_that_takes_only_a_part_leaves_no_gap(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A nearly full disk takes some of the bytes and says so only by a number."""
    started = account.start("print('x')")
    mirror = Mirror(account.client_run(started).attempt(1), ["0"], writing=True)

    class Small:
        def __init__(self) -> None:
            self.data = b""

        def write(self, data: bytes) -> int:
            self.data += bytes(data[:3])
            return len(data[:3])

        def close(self) -> None:
            """Nothing is open."""

    small = Small()
    monkeypatch.setitem(mirror._files, "0", small)  # plays a raw file
    mirror.write("0", b"0123456789")
    assert small.data == b"0123456789"
    assert mirror.offsets["0"] == 10


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_here_stops_the_mirror_and_not_the_stream(account: Account) -> None:
    started = account.start("print('x' * 5000)")
    started.end()
    following = make_following(account, started, CuttingLink())
    following.wish.run.attempt(1).output("0").symlink_to("/dev/full")
    again = Following(following.wish, CuttingLink(), Ears(), writing=True)
    assert again.run().state == "ended"
    assert again.mirror.failure is not None
    assert isinstance(again.listener, Ears)
    assert bytes(again.listener.heard) == started.output()


def naive_offset(data: bytes, lines: int) -> int:
    whole = re.findall(rb"[^\n]*\n|[^\n]+", data)
    return len(data) - sum(map(len, whole[-lines:] if lines > 0 else []))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=80)
    | st.lists(st.sampled_from([b"\n", b"a", b"bc\n"]), max_size=40).map(b"".join),
    lines=st.integers(-1, 30),
    block=st.integers(1, 9),
)
def test_the_last_lines_begin_where_a_naive_reader_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, lines: int, block: int
) -> None:
    monkeypatch.setattr(files, "BLOCK", block)
    path = tmp_path / "log"
    path.write_bytes(data)
    assert files.tail_offset(str(path), lines) == naive_offset(data, lines)


def test_the_tail_is_asked_for_over_the_wire(account: Account) -> None:
    started = account.start("for n in range(1000): print(n)")
    started.end()
    session = account.connect()
    offset = session.request("tail", run="run", attempt=1, rank=0, lines=3)["offset"]
    assert started.output()[offset:] == b"997\n998\n999\n"
    assert session.request("tail", run="run", attempt=1, rank=5, lines=3)["offset"] == 0
    until(lambda: not started.supervisor_lives(), "the supervisor's end")
