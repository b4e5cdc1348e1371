"""Signals, closed pipes and real terminals: leaving is quick and says what goes on, and nothing hostile gets through."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from remote_train.host import layout
from tests.e2e.machines import Box, Laptop, known_line, poll, read_until, write_project
from tests.e2e.terminal import open_terminal
from tests.sshd import serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.sshd, pytest.mark.timeout(100)]

UP = "import time\nprint('up', flush=True)\ntime.sleep(600)\n"
PROMPT = 5.0  # seconds that leaving may take on a busy machine; the contract's 1 s is for bench/


@pytest.fixture
def waiting(project: Path) -> Path:
    """A project whose training says `up` and waits."""
    return write_project(project, {"train.py": UP})


def run_of(project: Path) -> str:
    (run,) = [path.name for path in (project / "runs").iterdir()]
    return run


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_detaches_and_the_run_goes_on(
    laptop: Laptop, box: Box, waiting: Path, number: int, code: int
) -> None:
    process = laptop.popen(waiting, "run", "train.py")
    read_until(process.stdout, b"up\n")

    process.send_signal(number)
    _, err = process.communicate(timeout=PROMPT)

    assert process.returncode == code
    run = run_of(waiting)
    assert f"remote-train logs -f {run}" in err.decode()
    assert f"remote-train stop {run}" in err.decode()
    assert "Traceback" not in err.decode()
    assert box.processes(run) != []
    (package,) = (laptop.home / "state" / "remote-train" / "client" / layout.PACKAGES).iterdir()
    assert json.loads(package.read_text())["whole"], "an attempt elsewhere would need it"
    laptop.ok(waiting, "stop", "--grace", "0")


def test_ctrl_c_twice_at_once_is_one_detach(laptop: Laptop, box: Box, waiting: Path) -> None:
    with open_terminal(laptop, waiting, "run", "train.py") as terminal:
        terminal.wait_for("up")
        terminal.key(b"\x03\x03")

        assert terminal.end(PROMPT) == 130

    assert "Traceback" not in terminal.text
    assert box.processes(run_of(waiting)) != []


def test_ctrl_c_while_a_host_is_silent_does_not_wait_for_it(laptop: Laptop, waiting: Path) -> None:
    with serving(None) as port:
        laptop.write_hosts(f'default = ["box"]\n[hosts.box]\naddress = ["127.0.0.1"]\nport = {port}\n')
        with open_terminal(laptop, waiting, "run", "train.py") as terminal:
            terminal.wait(lambda: is_connected(port), "a connection")
            terminal.key(b"\x03")

            assert terminal.end(3.0) == 130  # the host has 5 s

    assert "reaching box" in terminal.raw.decode()
    assert "nothing was started" in terminal.text
    assert "Traceback" not in terminal.text
    assert not (waiting / "runs").exists()


def is_connected(port: int) -> bool:
    """Tell whether somebody has an established connection to a port of this machine."""
    with open("/proc/net/tcp", encoding="ascii") as table:  # noqa: PTH123  (a file of the kernel)
        rows = [line.split() for line in table][1:]
    return any(row[2].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


@pytest.mark.torch
@pytest.mark.parametrize("pause", [0.8])
def test_a_second_ctrl_c_stops_a_local_run(alone: Laptop, waiting: Path, pause: float) -> None:
    with open_terminal(alone, waiting, "run", "train.py") as terminal:
        terminal.wait_for("up")
        terminal.key(b"\x03")
        terminal.wait_for("Ctrl-C once more")
        until = time.monotonic() + pause
        terminal.wait(lambda: time.monotonic() > until, "a moment")
        terminal.key(b"\x03")

        assert terminal.end() == 130

    run = run_of(waiting)
    assert f"{run} was stopped" in terminal.text
    assert json.loads((alone.attempt(run) / "exit.json").read_text())["stopped"] is True


@pytest.mark.torch
def test_a_doubled_ctrl_c_does_not_stop_a_local_run(alone: Laptop, waiting: Path) -> None:
    with open_terminal(alone, waiting, "run", "train.py") as terminal:
        terminal.wait_for("up")
        terminal.key(b"\x03")
        terminal.wait_for("Ctrl-C once more")
        terminal.key(b"\x03")

        assert terminal.end() == 130

    run = run_of(waiting)
    assert not (alone.attempt(run) / "exit.json").exists()
    assert (
        alone.ok(waiting, "ps").out.split()[9:11] == [b"local", b"running"]
        or b"running" in alone.ok(waiting, "ps").out
    )
    alone.ok(waiting, "stop", "--grace", "0")


def test_ctrl_c_on_a_host_offers_no_stop(laptop: Laptop, waiting: Path) -> None:
    with open_terminal(laptop, waiting, "run", "train.py") as terminal:
        terminal.wait_for("up")
        terminal.key(b"\x03")

        assert terminal.end(PROMPT) == 130

    assert "goes on" in terminal.text
    assert "once more" not in terminal.text
    assert "^C" not in terminal.text
    laptop.ok(waiting, "stop", "--grace", "0")


def test_a_closed_terminal_leaves_the_run_alone(laptop: Laptop, box: Box, waiting: Path) -> None:
    with open_terminal(laptop, waiting, "run", "train.py") as terminal:
        terminal.wait_for("up")
        os.close(terminal.master)
        terminal.master = os.open(os.devnull, os.O_RDONLY)

        assert terminal.process.wait(PROMPT) == 129

    assert box.processes(run_of(waiting)) != []


@pytest.mark.parametrize(("lines", "extra"), [("1", []), ("40", ["--json"])])
def test_a_reader_that_has_enough_ends_it_quietly(
    laptop: Laptop, box: Box, project: Path, lines: str, extra: list[str]
) -> None:
    write_project(
        project,
        {"train.py": "import time\nwhile True:\n    print('x' * 80, flush=True)\n    time.sleep(0.001)\n"},
    )
    process = laptop.popen(project, "run", *extra, "train.py")
    head = subprocess.run(["head", "-n", lines], stdin=process.stdout, capture_output=True, check=True)
    process.stdout.close()
    process.stdout = None

    _, err = process.communicate(timeout=20)

    assert head.stdout.count(b"\n") == int(lines)
    assert process.returncode in {0, 141}
    assert "Traceback" not in err.decode()
    assert "BrokenPipe" not in err.decode()
    assert box.processes(run_of(project)) != []


STEPS = """
import sys, time
print("number of parameters: 10.00M")
for n in range(1, 200):
    print(f"step {n}/400 | loss {5 - n / 100:.4f} | 10.0 ms | 1,000 tok/s", flush=True)
    time.sleep(0.01)
"""


def test_a_terminal_has_a_status_line_that_is_gone_at_the_end(laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": STEPS})
    with open_terminal(laptop, project, "run", "train.py") as terminal:
        terminal.wait(lambda: "ETA" in last_line(terminal.text), "the status line")
        during = last_line(terminal.text)

        assert terminal.end(40) == 0

    assert "loss" in during
    assert "/400" in during
    assert "step 199/400 | loss 3.0100" in terminal.text  # the training's own lines are whole
    assert last_line(terminal.text).endswith("is done")


def last_line(text: str) -> str:
    return text.rstrip().splitlines()[-1] if text.strip() else ""


HOSTILE = r"""
import sys
out = sys.stdout.buffer
out.write(b"\x1b[31mred\x1b[0m plain\n")
out.write(b"\x1b]0;owned title\x07after title\n")
out.write(b"\x1b]52;c;Y3VybCBldmls\x07after clipboard\n")
out.write(b"\x1b[2J\x1b[1;1Hafter clear\n")
out.write(b"\x1b[6n\x1b[c\x1bZafter questions\n")
out.write(b"\x1b[?1049h\x1b[?25lafter modes\n")
out.write(b"\x9b2J\x1bPq#0\x1b\\after c1 and dcs\n")
out.write("\u202efdp.exe\u2066after bidi\n".encode())
out.write(b"\x1b[31mleft red")
"""


def test_a_hostile_training_cannot_drive_the_terminal(laptop: Laptop, box: Box, project: Path) -> None:
    write_project(project, {"train.py": HOSTILE})
    with open_terminal(laptop, project, "run", "train.py") as terminal:
        assert terminal.end(40) == 0

    for words in ("after title", "after clear", "after questions", "after modes", "after c1 and dcs"):
        assert words in terminal.text
    assert terminal.screen.title == ""
    assert terminal.answers == []  # the terminal was not made to type
    for bad in (
        b"\x1b]",
        b"\x1b[2J",
        b"\x1b[6n",
        b"\x1b[?1049h",
        b"\x1b[?25l",
        b"\x1bP",
        b"\x1bZ",
        b"\x1b[c",
    ):
        assert bad not in terminal.raw, bad
    assert "\u202e".encode() not in terminal.raw
    assert b"\x1b[31mred" in terminal.raw  # colours are a training's right
    assert terminal.screen.cursor.attrs.fg == "default"
    (run,) = [path.name for path in (project / "runs").iterdir()]
    assert box.log(run) == (project / "runs" / run / "attempts/1/ranks/0.log").read_bytes()  # exact on disk


def test_hostile_names_are_neutral_on_a_terminal(laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": "print('up')", "\x1b]0;owned\x07.env": "x", ".env\x1b[2J": "y"})
    with open_terminal(laptop, project, "run", "train.py") as terminal:
        assert terminal.end(40) == 0

    assert b"\x1b]0;owned" not in terminal.raw
    assert b"\x1b[2J" not in terminal.raw


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"n\n", 11), (b"\x03", 130)])
def test_an_unknown_key_is_asked_about_on_a_terminal(
    laptop: Laptop, box: Box, project: Path, answer: bytes, code: int
) -> None:
    write_project(project, {"train.py": "print('in')"})
    laptop.trust()
    with open_terminal(laptop, project, "run", "train.py") as terminal:
        terminal.wait_for("[y/N]")
        assert "SHA256:" in terminal.text
        terminal.key(answer)

        assert terminal.end(20) == code

    known = (laptop.home / ".ssh" / "known_hosts").read_text()
    assert (known_line(box.sshd).split()[-1] in known) == (code == 0)
    assert ("userauth-request" in box.sshd.read_log()) == (code == 0)


def test_detach_and_attach_on_a_terminal(laptop: Laptop, box: Box, project: Path, tmp_path: Path) -> None:
    gate = tmp_path / "go"
    script = (
        f"import os, time\nprint('first', flush=True)\nwhile not os.path.exists({str(gate)!r}):\n"
        "    time.sleep(0.01)\nprint('second')\n"
    )
    write_project(project, {"train.py": script})
    with open_terminal(laptop, project, "run", "train.py") as terminal:
        terminal.wait_for("first")
        terminal.key(b"\x03")
        assert terminal.end(PROMPT) == 130
    gate.touch()
    run = run_of(project)
    poll((box.attempt(run) / "exit.json").exists, "the end")

    with open_terminal(laptop, project, "logs", "-f") as terminal:
        assert terminal.end(20) == 0

    lines = terminal.text.splitlines()
    assert lines[:2] == ["first", "second"]
