"""What a person is told of a run, said once and of the right one."""

from __future__ import annotations

import io

import pytest

from remote_train.show.display import Display
from remote_train.show.live import LiveListener
from remote_train.show.screen import Screen


def tell(kind: str, **facts: object) -> str:
    """Return what stands on stderr after an event."""
    written = io.BytesIO()
    stderr = io.TextIOWrapper(written, "utf-8")
    screen = Screen(
        io.BytesIO(),
        stderr,
        stdout_is_terminal=False,
        stderr_is_terminal=False,
        width=lambda: 200,
        colour=False,
    )
    with Display(screen) as display:
        LiveListener(display).tell(kind, **facts)
    return written.getvalue().decode()


@pytest.mark.parametrize("reason", ["no word from box for 14 s", "the connection to box ended"])
def test_a_silent_host_is_said_to_be_silent_once(reason: str) -> None:
    told = tell("silent", host="box", reason=reason, meanwhile="the run goes on")
    assert told.count("no word from box") == 1
    assert reason in told
    assert "the run goes on, reconnecting" in told


@pytest.mark.parametrize(
    ("name", "launcher", "who"),
    [
        ("1", "torchrun", "rank 1"),
        ("launcher", "torchrun", "torchrun"),
        ("launcher", "python", "the training"),
    ],
)
def test_last_lines_are_of_who_said_them(name: str, launcher: str, who: str) -> None:
    told = tell("failure", rank=1, name=name, launcher=launcher, tail=b"boom")
    assert f"the last lines of {who}:\n" in told
    assert "boom" in told
