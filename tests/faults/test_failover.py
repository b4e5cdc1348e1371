"""When the host of a run is cut off in mid-training, the run goes on at the next one, and nothing of the old copy is mixed in."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.e2e.machines import find_marked
from tests.faults.counts import PATIENT, Goal, is_nightly
from tests.faults.two_hosts import OFTEN, SMALL, Host, Hosts, running_hosts, set_pace
from tests.host.account_kit import sha256, until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = [pytest.mark.sshd, pytest.mark.torch, PATIENT]

AT_NIGHT = pytest.mark.skipif(not is_nightly(), reason="half a minute of silence: at night")
STEPS = 60
PLAIN = ("plain.py", "--steps", str(STEPS))
TORCH = ("paced.py", *SMALL, *OFTEN, f"--steps={STEPS}")
SLOW = 0.2
LAST = STEPS - 2
"""Where a copy that is cut off waits: it has not ended by itself when it is heard again."""
LONG = 90.0


class Command:
    """One `remote-train` whose output goes to files; killed when the block ends."""

    def __init__(self, hosts: Hosts, *argv: str, **options: Any) -> None:
        self.out = hosts.project.parent / f"{'-'.join(argv[:2])}.out".replace("/", "_")
        self.err = self.out.with_suffix(".err")
        with self.out.open("wb") as out, self.err.open("wb") as err:
            popen = hosts.laptop.popen(hosts.project, *argv, stdout=out, stderr=err, **options)
        self.process: subprocess.Popen[bytes] = popen

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def said(self) -> str:
        return self.err.read_text(errors="replace")

    def expect(self, code: int) -> Command:
        """Wait for the end."""
        with contextlib.suppress(TimeoutError):
            self.process.wait(LONG)
        assert self.process.returncode == code, self.said()
        assert "Traceback" not in self.said()
        return self


def run_over(hosts: Hosts, *argv: str, script: Sequence[str] = PLAIN) -> Command:
    """Type `run --failover`."""
    ours = ("--failover", "--failover-after", "4", "--name", "r")
    return Command(hosts, "run", *ours, *argv, *script)


def read_run(hosts: Hosts, name: str = "r") -> dict[str, Any]:
    record: dict[str, Any] = json.loads((hosts.project / "runs" / name / "run.json").read_text())
    return record


def home_of(hosts: Hosts, name: str = "r") -> Path:
    return hosts.project / "runs" / name


def home_checkpoint(hosts: Hosts, attempt: int, name: str = "r") -> bool:
    """Tell whether a checkpoint of an attempt is at home."""
    try:
        ledger = json.loads((home_of(hosts, name) / "pulled.json").read_text())
    except FileNotFoundError:
        return False
    return any(entry["attempt"] == attempt for entry in ledger.values())


def read_curve(hosts: Hosts, name: str = "r", *more: str) -> list[dict[str, Any]]:
    """Return what the training's log gives: the meter and its own reports say the same once more, in other steps."""
    done = hosts.laptop.ok(hosts.project, "metrics", "--json", *more, name)
    return [event for event in done.events if event.get("source", "log:").startswith("log:")]


def losses(events: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in events if event["event"] == "metric"]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with running_hosts(tmp_path, "a", "b") as running:
        yield running


def await_step(host: Host, attempt: int, step: int, name: str = "r") -> None:
    until(lambda: b"step %d/" % step in host.log(name, attempt), f"step {step} on {host.name}", LONG)


def cut_off(hosts: Hosts, step: int) -> None:
    """Cut the first host off once it has come to a step and a checkpoint is home; it trains on."""
    a = hosts["a"]
    await_step(a, 1, step)
    until(lambda: home_checkpoint(hosts, 1), "a checkpoint of attempt 1 at home", LONG)
    a.cut()
    a.pace(SLOW, LAST)


def train_undisturbed(hosts: Hosts) -> list[tuple[int, float]]:
    """Return what the same training loses at each step when nobody disturbs it."""
    set_pace(hosts.laptop.home, 0.0)
    hosts.laptop.ok(hosts.project, "run", "--local", "--name", "whole", *TORCH, seconds=LONG)
    found = losses(read_curve(hosts, "whole"))
    assert [step for step, _ in found] == list(range(1, STEPS + 1))
    return found


def check_hop(hosts: Hosts, old: Host, new: Host) -> None:
    """Check that attempt 1 was left aside and attempt 2 is the run."""
    record = read_run(hosts)
    assert (record["state"], record["host"]) == ("ended", new.name)
    assert [item["attempt"] for item in record["attempts"]] == [1, 2]
    assert [item.get("superseded", False) for item in record["attempts"]] == [True, False]
    kept = home_of(hosts) / "files" / "out" / "ckpt.pt"
    ledger = json.loads((home_of(hosts) / "pulled.json").read_text())
    assert ledger[str(kept)]["attempt"] == 2
    assert sha256(kept.read_bytes()) == new.made("r", 2)
    mirrored = (home_of(hosts) / "attempts" / "1" / "ranks" / "0.log").read_bytes()
    assert old.log("r", 1).startswith(mirrored)
    assert (home_of(hosts) / "attempts" / "2" / "ranks" / "0.log").read_bytes() == new.log("r", 2)


def check_curve(hosts: Hosts, whole: list[tuple[int, float]]) -> None:
    """Check that the curve is that of an uninterrupted run, with the hop marked in it."""
    events = read_curve(hosts)
    assert losses(events) == whole
    (hop,) = [event for event in events if event["event"] == "hop"]
    assert (hop["attempt"], hop["host"], hop["from_host"]) == (2, "b", "a")
    assert hop["checkpoint"] == "out/ckpt.pt"
    metrics = [event for event in events if event["event"] == "metric"]
    before = sum(event["host"] == "a" for event in metrics)
    assert [event["host"] for event in metrics] == ["a"] * before + ["b"] * (STEPS - before)
    assert before % 4 == 0  # whence it went on; its step is told from when it was written, to half a second
    assert abs(hop["step"] - before) <= 4
    times = [event["run_time"] for event in metrics]
    assert times == sorted(times)


@pytest.mark.timeout(3000 if is_nightly() else 240)
def test_a_run_goes_on_at_the_next_host_and_the_old_copy_is_stopped(tmp_path: Path) -> None:
    with Goal("failover: the first of two hosts is cut off", reduced=1, nightly=10) as goal:
        for trial in goal:
            with trial, running_hosts(tmp_path / str(trial.number), "a", "b", torch=True) as hosts:
                go_over_and_heal(hosts, trial.chance.randrange(8, 20))


def go_over_and_heal(hosts: Hosts, step: int) -> None:
    """Cut the first host off after a step; heal it while the second trains."""
    a, b = hosts["a"], hosts["b"]
    a.pace(0.0, hold=step)
    b.pace(0.0, hold=STEPS - 10)
    with run_over(hosts, script=TORCH) as command:
        cut_off(hosts, step)
        written = len(a.log("r", 1))
        whole = train_undisturbed(hosts)  # while the silence lasts
        until((b.attempt("r", 2) / "attempt.json").exists, "attempt 2", LONG)
        await_step(b, 2, STEPS - 10)
        assert len(a.log("r", 1)) > written  # both compute
        assert not a.ended("r", 1)
        record = read_run(hosts)
        assert (record["attempts"][0]["superseded"], record["state"]) == (True, "running")
        a.heal()
        ended = until(lambda: a.ended("r", 1), "the end of the old copy", LONG)
        until(lambda: not a.processes("r", 1), "the end of all of it")
        assert (ended["stopped"], ended["superseded_by"]) == (True, 2)
        assert read_run(hosts)["state"] == "running"
        until(lambda: "the old copy on a (attempt 1) is stopped" in command.said(), "that it was said")
        b.pace(0.0)
        command.expect(0)
    check_hop(hosts, a, b)
    aside = hosts.laptop.ok(hosts.project, "logs", "--attempt", "1", "r").out
    assert aside == a.log("r", 1)
    check_curve(
        hosts, whole
    )  # now that the old copy's clock is here too: before, its last lines may have no time
    shown = hosts.laptop.ok(hosts.project, "show", "r").out.decode()
    assert "from out/ckpt.pt" in shown
    assert "a was silent for" in shown
    check_hop(hosts, a, b)


@AT_NIGHT
def test_a_laptop_killed_after_the_hop_stops_the_old_copy_at_its_next_command(hosts: Hosts) -> None:
    a, b = hosts["a"], hosts["b"]
    a.pace(0.0, hold=8)
    b.pace(0.0, hold=40)
    with run_over(hosts) as command:
        cut_off(hosts, 8)
        await_step(b, 2, 40)
        command.process.kill()
    listed = hosts.laptop.ok(hosts.project, "ps").out.decode()
    assert "running" in listed
    assert not a.ended("r", 1)
    a.heal()
    hosts.laptop.ok(hosts.project, "ps")
    assert until(lambda: a.ended("r", 1), "the end of the old copy", LONG)["superseded_by"] == 2
    assert find_marked(a.record("r", 1)["cookie"]) == []
    b.pace(0.0)
    Command(hosts, "logs", "-f", "r").expect(0)
    assert read_run(hosts)["state"] == "ended"
    assert json.loads((home_of(hosts) / "pulled.json").read_text())


@pytest.mark.slow
def test_a_lost_run_goes_there_and_back(hosts: Hosts) -> None:
    """A's supervisor and training are killed, then B's: A -> B -> A."""
    a, b = hosts["a"], hosts["b"]
    a.pace(0.05, hold=12)
    b.pace(0.05, hold=24)
    with run_over(hosts) as command:
        await_step(a, 1, 12)
        until(lambda: home_checkpoint(hosts, 1), "a checkpoint of attempt 1 at home", LONG)
        a.crash("r", 1)
        a.pace(0.0)  # only now: let go before, it may be through before it is killed
        await_step(b, 2, 24)
        until(lambda: home_checkpoint(hosts, 2), "a checkpoint of attempt 2 at home", LONG)
        b.crash("r", 2)
        command.expect(0)
    record = read_run(hosts)
    assert [item["host"] for item in record["attempts"]] == ["a", "b", "a"]
    assert [step for step, _ in losses(read_curve(hosts))] == list(range(1, STEPS + 1))
    assert record["state"] == "ended"


@AT_NIGHT
def test_where_no_other_host_is_left_it_goes_on_here(tmp_path: Path) -> None:
    with running_hosts(tmp_path, "a") as hosts:
        a = hosts["a"]
        a.pace(0.0, hold=8)
        set_pace(hosts.laptop.home, 0.0)
        with run_over(hosts) as command:
            cut_off(hosts, 8)
            command.expect(0)
        assert [item["host"] for item in read_run(hosts)["attempts"]] == ["a", "local"]
        assert [step for step, _ in losses(read_curve(hosts))] == list(range(1, STEPS + 1))
        a.heal()
        hosts.laptop.ok(hosts.project, "ps")
        assert until(lambda: a.ended("r", 1), "the end of the old copy", LONG)["superseded_by"] == 2


@AT_NIGHT
def test_without_another_host_or_fallback_the_silent_one_is_waited_for(tmp_path: Path) -> None:
    with running_hosts(tmp_path, "a") as hosts:
        a = hosts["a"]
        a.pace(0.1, hold=30)
        with run_over(hosts, "--no-fallback") as command:
            await_step(a, 1, 8)
            a.cut()
            until(lambda: "no other host takes r" in command.said(), "that it is waited for", LONG)
            a.heal()
            a.pace(0.0)
            command.expect(0)
            assert command.out.read_bytes() == a.log("r", 1)  # nothing twice, nothing missed
        assert len(read_run(hosts)["attempts"]) == 1


@pytest.mark.parametrize("how", ["stopped", "failed"])
def test_a_training_that_ended_by_itself_does_not_go_on(hosts: Hosts, how: str) -> None:
    a = hosts["a"]
    a.pace(0.1, hold=8)
    with run_over(hosts) as command:
        await_step(a, 1, 8)
        if how == "stopped":
            hosts.laptop.ok(hosts.project, "stop", "r")
        else:
            (a.box.home / "pace").write_text("no pace at all")
        command.expect(15 if how == "stopped" else 1)
    assert len(read_run(hosts)["attempts"]) == 1


@AT_NIGHT
def test_ctrl_c_says_what_runs_where(hosts: Hosts) -> None:
    a, b = hosts["a"], hosts["b"]
    a.pace(0.0, hold=8)
    b.pace(0.0, hold=30)
    with run_over(hosts) as command:
        cut_off(hosts, 8)
        await_step(b, 2, 30)
        os.kill(command.process.pid, signal.SIGINT)
        command.expect(130)
        assert "attempt 2 runs on b" in command.said()
        assert "attempt 1 may still run on a" in command.said()
