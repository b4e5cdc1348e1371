"""The laptop dies at any moment, and several laptops watch one run: training goes on, and no byte is lost or mixed."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import make_laptop
from tests.faults.chaos_proxy import DOWN, FIN, RST, ChaosProxy, Cut, Program
from tests.faults.conftest import laptop_behind
from tests.faults.counts import PATIENT, Goal, Trial
from tests.faults.invariants import Seat, check, expect_no_agents
from tests.faults.streams import SECONDS, Stream
from tests.host.account_kit import sha256, until

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests.e2e.machines import Box, Laptop

pytestmark = [pytest.mark.sshd, PATIENT]

LAUNCH = 1.5  # seconds that a launch takes, about


def wait_for_moment(seconds: float) -> None:
    moment = time.monotonic() + seconds
    until(lambda: time.monotonic() > moment, "its moment")


def test_a_laptop_killed_while_it_follows_goes_on_at_its_offset(
    laptop: Laptop, box: Box, project: Path
) -> None:
    name = "laptop killed with SIGKILL while it follows, then `logs -f`"
    with Stream(laptop, box, project) as stream, Goal(name, reduced=3, nightly=150) as goal:
        stream.run(pace=100_000)
        stream.begun()
        mirror = project / "runs" / "s" / "attempts" / "1" / "ranks" / "0.log"
        for trial in goal:
            with trial:
                held = mirror.stat().st_size
                stream.kill()
                stream.type("logs", "-f", "s", "--no-pull")
                until(lambda: mirror.stat().st_size > held or stream.ended(), stream.words())  # noqa: B023
                assert not stream.ended(), stream.words()
                wait_for_moment(trial.chance.uniform(0.0, 0.2))
                check(box.root, [Seat(project / "runs")], settled=False, starts=stream.starts)
        stream.finish(settled=False)
        stream.check_all()


def test_a_laptop_killed_while_it_launches_leaves_one_run_or_none(
    laptop: Laptop, box: Box, tmp_path: Path
) -> None:
    name = "laptop killed with SIGKILL while it launches: one run or none, never two, and the truth about it"
    with Goal(name, reduced=3, nightly=120) as goal:
        for trial in goal:
            with trial:
                (project := tmp_path / f"project{trial.number}").mkdir()
                with Stream(laptop, box, project, f"k{trial.number}", 0) as stream:
                    stream.run()
                    with contextlib.suppress(Exception):
                        stream.process.wait(trial.chance.uniform(0.3, LAUNCH))  # type: ignore[union-attr]
                    stream.kill()
                    expect_no_agents(box.home)
                    tell_truth(stream)


def tell_truth(stream: Stream) -> None:
    """What the laptop says of a run that it may not know to have started is what the host has."""
    known = (stream.project / "runs" / stream.name / "run.json").exists()
    there = (box_attempt := stream.box.attempt(stream.name)).joinpath("attempt.json").exists()
    if not known:
        assert not there, "a run that its laptop has no record of"
        return
    shown = stream.laptop.type(stream.project, "show", stream.name, "--json")
    if not there:
        assert shown.code in (0, 31), shown.err
        assert not box_attempt.joinpath("exit.json").exists()
        return
    stream.type("logs", "-f", stream.name, "--no-pull")
    stream.finish(settled=False)


@pytest.mark.slow
def test_several_laptops_watch_one_run_through_cuts(
    laptop: Laptop, proxied: Laptop, proxy: ChaosProxy, box: Box, project: Path, tmp_path: Path
) -> None:
    """Its own laptop twice, another one, and a third behind a line that breaks: each gets every byte once."""
    name = "several laptops watch one run, one behind a line that breaks"
    with Goal(name, reduced=1, nightly=15) as goal:
        for trial in goal:
            with trial:
                watch_together(trial, [laptop, proxied], proxy, box, tmp_path / f"p{trial.number}")
    assert project.exists()


def watch_together(trial: Trial, laptops: list[Laptop], proxy: ChaosProxy, box: Box, folder: Path) -> None:
    laptop, proxied = laptops
    third = make_laptop(folder / "third laptop", box)
    for place in ("own", "far", "third"):
        (folder / place).mkdir()
    run = f"w{trial.number}"
    proxy.program = lambda _number: break_it(trial.chance)
    with Stream(laptop, box, folder / "own", run) as stream, contextlib.ExitStack() as stack:
        stream.run(pace=300_000)
        stream.begun()
        watchers = []
        for number, (who, where, what) in enumerate(
            ((laptop, "own", run), (proxied, "far", f"box:{run}"), (third, "third", f"box:{run}"))
        ):
            out = stack.enter_context((folder / f"watcher{number}").open("wb"))
            err = stack.enter_context((folder / f"watcher{number}.err").open("wb"))
            typed = who.popen(folder / where, "logs", "-f", what, "--no-pull", stdout=out, stderr=err)
            stack.callback(typed.wait)
            stack.callback(typed.kill)
            watchers.append((typed, folder / f"watcher{number}"))
        for _, path in watchers:
            said = path.with_suffix(".err")
            until(lambda: path.stat().st_size > 30_000, f"{path}: {said.read_text()}")  # noqa: B023  (called at once)
        until(lambda: len(proxy.lines) >= 4, "some cuts")
        proxy.program = lambda _number: Program()
        stream.finish()
        for typed, path in watchers:
            assert typed.wait(SECONDS) == 1, path.with_suffix(".err").read_text()
            assert sha256(path.read_bytes()) == sha256(box.log(run))
    for home in (proxied.home, third.home):
        adopted = home / "state" / "remote-train" / "client" / "adopted"
        check(box.root, [Seat(adopted)], complete=True, runs=[run])


def break_it(chance: random.Random) -> Program:
    return Program(cuts=(Cut(DOWN, 6000 + chance.randrange(60_000), chance.choice((FIN, RST))),))


@pytest.mark.slow
def test_another_laptop_stops_a_run_and_everybody_hears_of_it(
    laptop: Laptop, proxy: ChaosProxy, box: Box, project: Path, tmp_path: Path
) -> None:
    other = laptop_behind(proxy, tmp_path / "other", box)
    with Stream(laptop, box, project) as stream:
        stream.run(pace=200_000)
        stream.begun()
        stopped = other.ok(tmp_path, "stop", "box:s", "--grace", "0", "--json").event("stopped")
        assert stopped["state"] == "ended"
        assert stream.process is not None
        assert stream.process.wait(60.0) == 15, stream.words()
        assert sha256(stream.out.read_bytes()) == sha256(box.log("s"))
        stream.check_all()
        assert json.loads((box.attempt("s") / "exit.json").read_text())["stopped"] is True
