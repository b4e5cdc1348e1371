"""A slow line, and a checkpoint on its way over it: the log, requests, heartbeats and `stop` do not wait for it.

Each line of the log says when it was written, by the one clock of this machine; what is measured is when it is here. Asserted is
the promise of half a second at night; by day, on machines where many tests run at once, what no stall of the kind this is about keeps.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from remote_train.host.credit import HELD
from remote_train.session import Data, Session
from remote_train.transport.paramiko_ssh import ParamikoTransport
from tests.faults.chaos_proxy import ChaosProxy, Program
from tests.faults.counts import PATIENT, is_nightly, note
from tests.faults.lateness import BEGINNING, Lateness, pick_slowest
from tests.host.account_kit import PATIENCE, until
from tests.sshd import known_line_for, running_sshd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.host.account_kit import Account, Started

pytestmark = [pytest.mark.sshd, PATIENT]

LIMIT = 0.5 if is_nightly() else 3.0
SECONDS = 60.0 if is_nightly() else 5.0
MOST = 12 << 20
"""What the laptop may hold of a file at 40 MB/s: a window, and what the credit allows beside it."""
KB = 1000
SEGMENT = 1400
RUN = {"run": "run", "attempt": 1}
WRITING = """
import os, pathlib, time
pathlib.Path("big.bin").write_bytes(os.urandom(1 << 20) * 64)
print("written", flush=True)
while True:
    print("at", time.monotonic(), flush=True)
    time.sleep(0.1)
"""


def check(measured: Lateness, goal: str) -> None:
    assert not measured.broken
    late, slow = pick_slowest(measured.lines), pick_slowest(measured.answers)
    remark = f"p99 {late:.3f} s of a line, {slow:.3f} s of an answer"
    print(remark)
    note(goal, len(measured.lines), 0, SECONDS, remark)
    assert len(measured.lines) >= 5 * (SECONDS - BEGINNING), "too few lines came"
    assert late <= LIMIT, f"a line was {late:.3f} s late"
    assert slow <= LIMIT + 0.1, f"an answer took {slow:.3f} s"


@dataclass
class Slow:
    """A run on a host behind a slow line."""

    started: Started
    session: Session

    def stop(self) -> float:
        """Stop the run; return the seconds that the request took."""
        asked = time.monotonic()
        self.session.request("stop", **RUN, grace=1.0, level="stop")
        return time.monotonic() - asked


@contextlib.contextmanager
def behind_a_slow_line(account: Account, folder: Path, rate: float) -> Iterator[Slow]:
    account.connect().request("list")  # our program is there: it is no part of this
    started = account.start(WRITING)
    started.says(b"written")
    with (
        running_sshd(folder / "sshd", [f"SetEnv HOME={account.home}"]) as sshd,
        ChaosProxy(sshd.port) as proxy,
    ):
        proxy.program = lambda _number: Program(rate=rate, slice=SEGMENT)
        known = folder / "known_hosts"
        known.write_text(known_line_for(sshd, proxy.port))
        target = sshd.target(port=proxy.port, known_hosts_files=(known,))
        session = account.connect(transport=ParamikoTransport(target))
        session.request("list")
        yield Slow(started, session)
        session.close()


@pytest.mark.parametrize("rate", [64 * KB, 1000 * KB])
def test_a_log_does_not_wait_for_a_checkpoint(account: Account, tmp_path: Path, rate: int) -> None:
    with behind_a_slow_line(account, tmp_path, rate) as slow:
        session, measured = slow.session, Lateness()
        size = (slow.started.folder / "ranks" / "0.log").stat().st_size
        outputs = [{"stream": 5000, "name": "0", "offset": size}]
        session.request("follow", outputs=outputs, wait=True, **RUN)
        stream = session.new_stream()
        came, enough = 0, 0.5 * rate * SECONDS
        with session.open_inbox(stream) as inbox, measured.beside(session):
            session.request("get", path="big.bin", stream=stream, offset=0, block=4 << 20, **RUN)
            end = time.monotonic() + SECONDS
            while time.monotonic() < end or (came < enough and time.monotonic() < end + SECONDS):
                item = inbox.next_item(0.5)
                came += len(item.payload) if isinstance(item, Data) else 0
            took = slow.stop()
        check(measured, f"a log beside a pull at {rate // KB} KB/s")
        assert took <= LIMIT, f"`stop` took {took:.3f} s"
        assert came >= enough, "the link was not used"
        slow.started.end()


def test_who_does_not_read_a_file_still_reads_the_log(account: Account, tmp_path: Path) -> None:
    """A disk that hangs in the middle of a pull: far more than the laptop holds is on offer, and the log goes on."""
    with behind_a_slow_line(account, tmp_path, 40_000 * KB) as slow:
        session, measured = slow.session, Lateness()
        outputs = [{"stream": 5000, "name": "0", "offset": 0}]
        session.request("follow", outputs=outputs, wait=True, **RUN)
        stream = session.new_stream()
        with session.open_inbox(stream), measured.beside(session):
            session.request("get", path="big.bin", stream=stream, offset=0, block=4 << 20, **RUN)
            queue = session._arrivals._own[stream]
            until(
                lambda: sum(len(item.payload) for item in queue.items if isinstance(item, Data)) > HELD,
                "a full inbox",
            )
            measured.began = time.monotonic()
            until(
                lambda: len(measured.lines) > 10 * (SECONDS - BEGINNING),
                "lines that come meanwhile",
                SECONDS + PATIENCE,
            )
            held = sum(len(item.payload) for item in queue.items if isinstance(item, Data))
            assert held <= MOST
        check(measured, "a log beside a file that nobody reads")


def test_a_request_does_not_wait_for_an_upload(account: Account, tmp_path: Path) -> None:
    """The other direction: what the laptop sends in bulk keeps its own control frames waiting no longer."""
    rate = 256 * KB
    with behind_a_slow_line(account, tmp_path, rate) as slow:
        session, measured = slow.session, Lateness()
        content = os.urandom(int(rate * (SECONDS + 4)))
        stream = session.new_stream()
        items = [[hashlib.sha256(content).hexdigest(), len(content)]]
        number = session.submit("blobs", stream=stream, items=items, zlib=False)
        answers = threading.Thread(target=measured.take_answers, args=(session,))
        answers.start()
        try:
            began = time.monotonic()
            session.upload(stream, [content])
            took = time.monotonic() - began
        finally:
            measured.halt.set()
            answers.join()
        assert session.wait(number)["stored"] == 1
        slowest = pick_slowest(measured.answers)
        print(f"p99 {slowest:.3f} s of an answer")
        note("an answer beside an upload", len(measured.answers), 0, took, f"p99 {slowest:.3f} s")
        assert took >= 0.8 * len(content) / rate, "the line was not slow"
        assert took <= 3 * len(content) / rate, "the link was not used"
        assert slowest <= LIMIT, f"an answer took {slowest:.3f} s"
