"""A real network between laptop and host, where root may make one: lost packets, a slow line, silence, a new address."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.counts import PATIENT, Goal
from tests.faults.network import TO_HOST, TO_LAPTOP, needs_namespaces, running_network
from tests.faults.streams import Stream
from tests.host.account_kit import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.faults.network import Far

pytestmark = [pytest.mark.sshd, PATIENT]

NOTICED = 15.0 + 5.0

SILENCES: dict[str, Callable[[Far], None]] = {
    "nothing to the host": lambda far: far.drop(TO_HOST),
    "nothing to the laptop": lambda far: far.drop(TO_LAPTOP),
    "another address of the laptop": lambda far: far.renumber(),
}


@pytest.fixture(autouse=True)
def _needs() -> None:
    needs_namespaces()


def open_stream(stack: contextlib.ExitStack, folder: Path, pace: int) -> tuple[Far, Stream]:
    far = stack.enter_context(running_network(folder / "far"))
    (folder / "project").mkdir()
    stream = stack.enter_context(Stream(far.make_laptop(folder / "laptop"), far.box, folder / "project"))
    stream.run(pace)
    return far, stream


@pytest.mark.slow
def test_a_network_that_falls_silent_is_noticed_and_left_behind(tmp_path: Path) -> None:
    """All at once, each on a network of its own; a firewall heals after 8 s, an address stays another."""
    name = "silence noticed within 15 s on a real network: one-way drops, the laptop's address changed"
    with contextlib.ExitStack() as stack, Goal(name, reduced=3, nightly=3) as goal:
        opened = [open_stream(stack, tmp_path / str(number), 100_000) for number in range(3)]
        for _, stream in opened:
            stream.begun()
        logins = [far.box.sshd.read_log().count("Accepted publickey") for far, _ in opened]
        began = time.monotonic()
        for (far, _), fail in zip(opened, SILENCES.values(), strict=True):
            fail(far)
        until(
            lambda: time.monotonic() - began > 15.5, "15 s of silence"
        )  # longer than a peer is believed to live
        for (far, _), silence in zip(opened, SILENCES, strict=True):
            if "address" not in silence:
                far.restore()
        for trial in goal:
            with trial:
                far, stream = opened[trial.number]
                stream.grows(NOTICED)
                assert far.box.sshd.read_log().count("Accepted publickey") > logins[trial.number]
                stream.finish()
                stream.check_all()


@pytest.mark.slow
def test_lost_packets_resets_and_a_slow_line_only_take_time(tmp_path: Path) -> None:
    name = "20 % of packets lost, a line of 1 Mbit/s, resets: whole runs"
    with contextlib.ExitStack() as stack, Goal(name, reduced=3, nightly=3) as goal:
        changes: list[Callable[[Far], None]] = [
            lambda far: far.lose(20),
            lambda far: far.shape("1mbit"),
            lambda far: far.reset(),
        ]
        opened = []
        for number, change in enumerate(changes):
            far, stream = open_stream(stack, tmp_path / str(number), 30_000)
            stream.begun()
            change(far)
            opened.append((far, stream))
        far, stream = opened[2]
        over = time.monotonic() + 2.0
        until(lambda: time.monotonic() > over, "resets for 2 s")
        far.restore()
        for trial in goal:
            with trial:
                far, stream = opened[trial.number]
                stream.grows()
                stream.grows()
                stream.finish()
                far.restore()
                stream.check_all()
