"""What happens to sshd happens to nobody's training: restarts, killed and silent sessions, an absence."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.chaos_proxy import DOWN, UP, ChaosProxy
from tests.faults.conftest import laptop_behind
from tests.faults.counts import PATIENT, Goal
from tests.faults.invariants import AGENT_SECONDS
from tests.faults.sshd_control import kill_sessions, leave, list_sessions, restart, running_again
from tests.faults.streams import Stream
from tests.host.account_kit import agents_of, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.machines import Box, Laptop

pytestmark = [pytest.mark.sshd, PATIENT]

NOTICED = 15.0 + 4.0
"""DESIGN §6: a dead peer is noticed within 15 s; and what a new connection takes on a busy machine."""


def test_a_reload_keeps_the_session_and_a_killed_session_comes_back(
    laptop: Laptop, box: Box, project: Path
) -> None:
    with Stream(laptop, box, project) as stream:
        stream.run(pace=200_000)
        stream.begun()
        logins = box.sshd.read_log().count("Accepted publickey")
        restart(box.sshd)
        stream.grows()
        assert box.sshd.read_log().count("Accepted publickey") == logins
        assert kill_sessions(box.sshd) >= 1
        stream.grows()
        assert box.sshd.read_log().count("Accepted publickey") == logins + 1
        stream.finish()
        stream.check_all()


def test_an_sshd_that_is_away_for_seconds_is_waited_for(laptop: Laptop, box: Box, project: Path) -> None:
    with Stream(laptop, box, project) as stream, contextlib.ExitStack() as again:
        stream.run(pace=200_000)
        stream.begun()
        leave(box.sshd)
        until(lambda: "refused" in stream.words(), "what is said of it")
        again.enter_context(running_again(box.sshd))
        stream.grows()
        stream.finish()
        stream.check_all()
    assert "box is back" in stream.words()


def test_killed_agents_and_sessions_lose_nothing(laptop: Laptop, box: Box, project: Path) -> None:
    with (
        Stream(laptop, box, project) as stream,
        Goal("agent or its sshd killed at random while streaming", reduced=4, nightly=300) as goal,
    ):
        stream.run(pace=300_000)
        stream.begun()
        for trial in goal:
            with trial:
                until_then = time.monotonic() + trial.chance.uniform(0.0, 0.3)
                until(lambda: time.monotonic() > until_then, "its moment")  # noqa: B023  (called at once)
                until(lambda: agents_of(box.home), "an agent to kill")
                if trial.chance.random() < 0.5:
                    for agent in agents_of(box.home):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(agent, signal.SIGKILL)
                else:
                    kill_sessions(box.sshd)
                stream.grows()
        stream.finish()
        stream.check_all()


@pytest.mark.slow  # by day test_phases_dead_peer has a dead peer in every phase, test_network_faults the one-way silences
def test_silence_is_noticed_and_left_behind(tmp_path: Path, box: Box) -> None:
    """At once: a stopped session, nothing to the laptop, nothing from it, and neither way."""
    silences: list[tuple[str, ...]] = [(DOWN,), (UP,), (UP, DOWN), ()]
    with contextlib.ExitStack() as stack:
        streams, stopped = [], 0
        for number, silence in enumerate(silences):
            proxy = stack.enter_context(ChaosProxy(box.sshd.port))
            laptop = laptop_behind(proxy, tmp_path / f"laptop {number}", box)
            (tmp_path / f"project{number}").mkdir()
            stream = stack.enter_context(Stream(laptop, box, tmp_path / f"project{number}", f"s{number}"))
            known = set(list_sessions(box.sshd))
            stream.run(pace=100_000)
            stream.begun()
            streams.append((stream, proxy, silence))
            stopped = max(set(list_sessions(box.sshd)) - known)
        name = "a silent peer is noticed within 15 s while streaming: one way, the other, both, sshd stopped"
        with Goal(name, reduced=4, nightly=4) as goal:
            began = time.monotonic()
            os.kill(stopped, signal.SIGSTOP)
            stack.callback(os.kill, stopped, signal.SIGKILL)
            for _, proxy, silence in streams:
                if silence:
                    proxy.hush_live(*silence)
            for trial in goal:
                with trial:
                    stream, proxy, _ = streams[trial.number]
                    lines = proxy.lines
                    until(lambda: len(lines) == 2, "a new connection", NOTICED)  # noqa: B023  (called at once)
                    print(f"{streams[trial.number][2]}: noticed within {time.monotonic() - began:.1f} s")
                    stream.grows()
        for stream, _, _ in streams:
            stream.finish()
        # The agents behind the silence have heard nothing either, and are gone by themselves.
        until(lambda: not agents_of(box.home), "I8: the end of agents", AGENT_SECONDS)
        streams[0][0].check_all()
