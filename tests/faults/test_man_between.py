"""Somebody with another key stands between us and a host, in every phase: exit 11, nothing sent, no fallback, the run goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import write_project
from tests.faults.chaos_proxy import DOWN, UP, ChaosProxy, Program
from tests.faults.counts import PATIENT
from tests.faults.man_between import BEHIND, TRANSPORTS, standing_between
from tests.faults.streams import Stream
from tests.faults.two_hosts import PLAIN, PROJECT, set_pace
from tests.host.account_kit import until
from tests.sshd import running_sshd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.machines import Box
    from tests.faults.man_between import Between

pytestmark = [pytest.mark.sshd, PATIENT]


@pytest.fixture(params=[*TRANSPORTS, pytest.param(BEHIND, marks=pytest.mark.slow)])
def between(request: pytest.FixtureRequest, tmp_path: Path, box: Box) -> Iterator[Between]:
    with standing_between(tmp_path, box, request.param) as made:
        yield made


def test_a_first_connection_sends_nothing_and_falls_back_to_nothing(between: Between, project: Path) -> None:
    write_project(project, {"train.py": "print('never')"})
    between.take_over()
    between.expect_done(between.laptop.type(project, "run", "train.py"))
    assert not list((project / "runs").glob("*/attempts")), "no run was started anywhere"
    assert not (between.laptop.root / "runs").exists()
    between.expect_done(between.laptop.type(project, "hosts", "check", "box"))


def test_a_run_is_followed_read_pulled_and_stopped_by_its_own_host_only(
    between: Between, project: Path
) -> None:
    with Stream(between.laptop, between.box, project) as stream:
        stream.run(pace=200_000)
        stream.begun()
        between.take_over(cut=True)
        assert stream.process is not None
        assert stream.process.wait(60) == 11, stream.words()
        between.expect_refusal(stream.words())
        for command in (("logs", "-f"), ("pull",), ("stop",)):
            between.expect_done(between.laptop.type(project, *command))
        listed = between.laptop.ok(project, "ps")
        between.expect_refusal(listed.err)
        between.leave()
        assert between.box.processes("s"), "the run goes on"
        stream.type("logs", "-f")
        stream.finish()
    assert between.attempts() == 0


SAVES = """
import os
with open("big.bin", "wb") as file:
    for _ in range(24):
        file.write(os.urandom(1 << 20))
"""


@pytest.mark.slow  # by day the test above has a `pull` that meets a wrong key
def test_a_pull_that_is_cut_goes_on_with_its_own_host_only(between: Between, project: Path) -> None:
    write_project(project, {"train.py": SAVES})
    between.laptop.ok(project, "run", "--no-pull", "--name=p", "train.py")
    between.proxy.program = lambda _number: Program(rate=8_000_000)
    pulling = between.laptop.popen(project, "pull", "--match=big.bin")
    partial = project / "runs" / "p" / "files"
    until(
        lambda: any(path.stat().st_size > 4 << 20 for path in partial.rglob(".*") if path.is_file()),
        "some of the file",
    )
    between.take_over(cut=True)
    out, err = pulling.communicate(timeout=60)
    assert pulling.returncode == 11, err.decode()
    between.expect_refusal(err.decode() + out.decode())
    assert not (partial / "big.bin").exists()
    between.leave()
    between.proxy.program = lambda _number: Program()
    between.laptop.ok(project, "pull", "--match=big.bin")
    there = between.box.code("p") / "big.bin"
    assert (partial / "big.bin").read_bytes() == there.read_bytes()


@pytest.mark.slow
def test_a_wrong_host_at_one_address_is_left_for_the_right_one_at_another(
    between: Between, project: Path
) -> None:
    write_project(project, {"train.py": "print('true')"})
    lines = [f"Port {between.proxy.port}", "ListenAddress 127.0.0.2"]
    with running_sshd(project.parent / "second", lines) as stranger:
        describe_addresses(between, "127.0.0.2", "127.0.0.1")
        # Whoever answers first is tried first; transport/test_host_keys has what is said of a dropped address.
        done = between.laptop.ok(project, "run", "--no-fallback", "train.py")
        assert done.out == b"true\n"
        between.take_over()
        between.laptop.type(project, "run", "train.py").expect(11)
        assert "userauth" not in stranger.read_log()
    assert between.attempts() == 0


def describe_addresses(between: Between, *addresses: str) -> None:
    """Have the box at several addresses, known by its key under the last one alone."""
    text = between.laptop.hosts_file.read_text()
    listed = ", ".join(f'"{address}"' for address in addresses)
    between.laptop.write_hosts(text.replace('address = ["127.0.0.1"]', f"address = [{listed}]"))


@pytest.mark.slow  # seconds of silence; by day core/test_failover_choices has who is tried, and these tests what a wrong key does
def test_a_failover_to_a_host_with_a_wrong_key_is_exit_11(between: Between, project: Path) -> None:
    config = PROJECT.format(script="plain.py", checkpoint="out/ckpt.json")
    write_project(project, {"plain.py": PLAIN, "remote-train.toml": config})
    set_pace(between.box.home, 0.05, hold=20)
    with ChaosProxy(between.evil.port) as other:
        known = (between.laptop.home / ".ssh" / "known_hosts").read_text().strip()
        between.laptop.trust(known, known.replace(str(between.proxy.port), str(other.port)))
        head, _, table = between.laptop.hosts_file.read_text().partition("[hosts.box]\n")
        second = "[hosts.b]\n" + table.replace(str(between.proxy.port), str(other.port))
        head = head.replace('["box"]', '["box", "b"]')
        between.laptop.write_hosts(f"{head}[hosts.box]\n{table}{second}")
        argv = ("run", "--failover", "--failover-after=4", "--name=r", "plain.py", "--steps", "60")
        process = between.laptop.popen(project, *argv)
        until((project / "runs/r/files/out/ckpt.json").exists, "a checkpoint at home", 60)
        between.proxy.silence(UP, DOWN)
        _, err = process.communicate(timeout=100)
    assert process.returncode == 11, err.decode()
    assert "remote-train hosts trust b" in err.decode()
    assert between.visits > 0
    assert between.attempts() == 0
    assert between.box.processes("r"), "the run goes on"
    assert not (between.laptop.root / "runs").exists(), "nothing runs on the laptop"
