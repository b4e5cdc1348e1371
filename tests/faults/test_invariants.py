"""The checker passes what is sound and finds what is not: one that finds nothing proves nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from remote_train.follow import OUTPUTS_ALWAYS, Following, Wish
from remote_train.host import layout
from tests.core.cutting_link import CuttingLink, Ears
from tests.e2e.machines import Box, Laptop, write_project
from tests.faults.invariants import Seat, check, expect_no_agents, remember
from tests.host.account_kit import sha256

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.host.account_kit import Account


@pytest.fixture
def mirrored(account: Account) -> Path:
    """A run that has ended and come home: the attempt's mirror."""
    started = account.start("print('x' * 5000)")
    started.end()
    run = account.client_run(started)
    following = Following(Wish(run, 1, ["0", *OUTPUTS_ALWAYS], {0}), CuttingLink(), Ears(), writing=True)
    following.run()
    assert following.session is not None
    following.session.close()
    return run.attempt(1).folder


def seat_of(account: Account) -> Seat:
    return Seat(account.home / "client" / "runs")


def append(path: Path, data: bytes) -> None:
    path.write_bytes((path.read_bytes() if path.exists() else b"") + data)


def alter(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def spoil_blob(root: Path) -> None:
    append(next((root / layout.BLOBS).glob("??/*")), b"!")


def spoil_package(root: Path) -> None:
    next((root / layout.PACKAGES).glob("*.json")).write_text("[]")


def spoil_agent(root: Path) -> None:
    append(next((root / layout.AGENTS).rglob("wire.py")), b"#")


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


@dataclass(frozen=True)
class Places:
    """A state root, the attempt in it, and its mirror."""

    root: Path
    there: Path
    here: Path


HOST: list[tuple[str, Callable[[Places], None]]] = [
    ("I1", lambda at: alter(at.there / layout.CLAIM, token="another")),
    ("I1", lambda at: (at.there / layout.CLAIM).unlink()),
    ("I3", lambda at: alter(at.there / layout.EXIT, attempt=2)),
    ("I3", lambda at: alter(at.there / layout.EXIT, outputs={"0": 7})),
    ("I3", lambda at: alter(at.there / layout.ATTEMPT, boot_id="")),
    ("I4", lambda at: tear(at.there / layout.EXIT)),
    ("I4", lambda at: spoil_blob(at.root)),
    ("I4", lambda at: spoil_package(at.root)),
    ("I4", lambda at: spoil_agent(at.root)),
    ("I4", lambda at: (at.there / "exit.json.7.tmp").touch()),
]
HERE: list[tuple[str, Callable[[Places], None]]] = [
    ("I2", lambda at: append(at.here / "ranks" / "0.log", b"more")),
    ("I2", lambda at: flip(at.here / "ranks" / "0.log")),
    ("I2", lambda at: (at.here / "ranks" / "0.log").unlink()),
    ("I2", lambda at: append(at.here / layout.CLOCK, b"{}")),
    ("I3", lambda at: alter(at.here / layout.EXIT, code=9)),
    ("I3", lambda at: (at.here / layout.EXIT).unlink()),
]


def test_what_is_sound_passes(account: Account, mirrored: Path) -> None:
    kept = remember(mirrored)
    check(account.root, [seat_of(account)], complete=True, starts=lambda _run: 1, secret=b"canary", kept=kept)
    expect_no_agents(account.home)


def test_what_is_spoilt_is_found(account: Account, mirrored: Path, tmp_path: Path) -> None:
    for number, (invariant, spoil) in enumerate([*HOST, *HERE]):
        root, runs = tmp_path / str(number) / "root", tmp_path / str(number) / "runs"
        shutil.copytree(account.root, root)
        shutil.copytree(mirrored.parents[2], runs)
        check(root, [Seat(runs)], complete=True)
        places = Places(root, root / "runs" / "run" / "attempts" / "1", runs / "run" / "attempts" / "1")
        spoil(places)
        with pytest.raises(AssertionError, match=invariant):
            check(root, [Seat(runs)], complete=True)


def test_a_second_start_a_secret_a_change_and_a_wrong_pull_are_found(
    account: Account, mirrored: Path
) -> None:
    with pytest.raises(AssertionError, match="I1"):
        check(account.root, starts=lambda _run: 2)
    kept = remember(mirrored.parent.parent)
    (mirrored.parent.parent / "note").write_text("the canary sings")
    with pytest.raises(AssertionError, match="I9"):
        check(account.root, [seat_of(account)], secret=b"canary")
    alter(mirrored.parent.parent / "run.json", state="ended")
    with pytest.raises(AssertionError, match="I5"):
        check(account.root, kept=kept)
    pulled = mirrored.parent.parent / "pulled"
    pulled.write_bytes(b"torn")
    entry = {"here_mtime_ns": pulled.stat().st_mtime_ns, "sha256": sha256(b"whole")}
    (mirrored.parent.parent / "pulled.json").write_text(json.dumps({str(pulled): entry}))
    with pytest.raises(AssertionError, match="I4"):
        check(account.root, [seat_of(account)])


def test_an_orphan_and_an_agent_that_stays_are_found(
    account: Account, mirrored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del mirrored
    monkeypatch.setattr("tests.faults.invariants.ENDING_SECONDS", 0.3)
    record = json.loads((account.root / "runs" / "run" / "attempts" / "1" / layout.ATTEMPT).read_text())
    orphan = subprocess.Popen(["sleep", "60"], env={layout.COOKIE: record["cookie"]})
    try:
        with pytest.raises(AssertionError, match="I6"):
            check(account.root)
    finally:
        orphan.kill()
        orphan.wait()
    session = account.connect()
    session.request("list")
    with pytest.raises(AssertionError, match="I8"):
        expect_no_agents(account.home, 0.3)


@pytest.mark.slow
@pytest.mark.sshd
def test_commands_that_contradict_the_host_are_found(laptop: Laptop, box: Box, project: Path) -> None:
    write_project(project, {"train.py": "print('hello'); raise SystemExit(3)"})
    run = laptop.type(project, "run", "train.py").expect(1).run_id()
    seats = [Seat(project / "runs", laptop, project)]
    check(box.root, seats, complete=True)
    alter(project / "runs" / run / "run.json", exit={"code": 0})
    with pytest.raises(AssertionError, match="I10"):
        check(box.root, seats)
    shutil.rmtree(box.attempt(run) / "ranks")
    with pytest.raises(AssertionError, match="I3"):
        check(box.root, seats)
    assert sys.executable in str(laptop.hosts_file.read_text())
