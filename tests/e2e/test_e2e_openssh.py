"""The whole product over the user's own ssh: chosen in hosts.toml, or by what ssh_config or known_hosts ask for."""

from __future__ import annotations

import os
import subprocess
import tempfile
import termios
from pathlib import Path

import pytest

from tests.e2e.machines import Box, Laptop, known_line, write_project
from tests.e2e.terminal import Terminal, open_terminal
from tests.sshd import USER, make_key, public_line, running_sshd, wait_until

pytestmark = [pytest.mark.sshd, pytest.mark.timeout(100)]

SCRIPT = "import pathlib\npathlib.Path('out').mkdir()\npathlib.Path('out/ckpt.pt').write_bytes(bytes(3 << 20))\nprint('done')\n"
OPENSSH, PARAMIKO = '"openssh"', '"paramiko"'
PROJECT = 'checkpoints = ["out/*.pt"]\n'


def test_run_logs_and_pull(laptop: Laptop, box: Box, project: Path) -> None:
    laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe(transport=OPENSSH)}')
    write_project(project, {"train.py": SCRIPT, "remote-train.toml": PROJECT})
    spy = {"PYTHONPROFILEIMPORTTIME": "1"}

    done = laptop.ok(project, "run", "--no-pull", "train.py", env=spy)

    assert done.out == b"done\n"
    assert "remote_train.transport.openssh" in done.err
    assert "paramiko" not in done.err, "nobody pays for what is not used"
    assert "kex: client->server cipher: aes128-gcm@openssh.com" in box.sshd.read_log()
    assert laptop.ok(project, "logs").out == b"done\n"
    laptop.ok(project, "pull")
    (pulled,) = (project / "runs").glob("*/files/out/ckpt.pt")
    assert pulled.read_bytes() == bytes(3 << 20)


def test_a_host_that_paramiko_cannot_do_gets_ssh_and_one_line_says_so(
    laptop: Laptop, box: Box, project: Path
) -> None:
    write_project(project, {"train.py": "print('in')\n"})
    config = laptop.home / ".ssh" / "config"
    config.write_text(config.read_text() + "  Ciphers aes256-gcm@openssh.com\n")

    done = laptop.ok(project, "run", "train.py")

    assert done.out == b"in\n"
    assert done.err.count("box: ssh itself is used: ssh_config says Ciphers aes256-gcm@openssh.com") == 1
    assert "kex: client->server cipher: aes256-gcm@openssh.com" in box.sshd.read_log()
    laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe(transport=PARAMIKO)}')
    refused = laptop.type(project, "run", "train.py").expect(2)
    assert "Ciphers aes256-gcm@openssh.com" in refused.err
    assert 'transport = "openssh"' in refused.err


@pytest.mark.slow
def test_a_changed_key_is_exit_11_and_never_a_cpu_run(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path
) -> None:
    laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe(transport=OPENSSH)}')
    write_project(project, {"train.py": "print('in')\n"})
    laptop.trust(f"[127.0.0.1]:{box.sshd.port} {public_line(make_key(tmp_path / 'other'))}")

    done = laptop.type(project, "run", "train.py").expect(11)

    assert done.err.count("SHA256:") == 2
    assert "userauth" not in box.sshd.read_log()


@pytest.fixture
def guarded(laptop: Laptop, box: Box, project: Path) -> Path:
    """A project whose host takes one key, which has a passphrase."""
    key = make_key(laptop.home / "guarded", passphrase="open sesame")
    (box.sshd.folder / "authorized_keys").write_text(public_line(key) + "\n")
    keys = {"transport": '"openssh"', "identity_file": f'"{key}"'}
    laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe(**keys)}')
    return write_project(project, {"train.py": "import time\nprint('up', flush=True)\ntime.sleep(600)\n"})


def test_a_person_is_asked_by_ssh_and_ctrl_c_does_not_reach_it_afterwards(
    laptop: Laptop, box: Box, guarded: Path
) -> None:
    with open_terminal(laptop, guarded, "run", "train.py") as terminal:
        found = termios.tcgetattr(terminal.master)
        terminal.wait_for("Enter passphrase for key")
        terminal.key(b"mistyped\n")
        terminal.wait(lambda: terminal.text.count("Enter passphrase for key") == 2, "another try")
        terminal.key(b"\x1a\x15open sesame\n")  # Ctrl-Z stops nothing here, Ctrl-U takes it back
        terminal.wait_for("up")
        assert termios.tcgetattr(terminal.master) == found
        assert "open sesame" not in terminal.text
        assert box.sshd.read_log().count("Failed publickey") == 0
        assert box.sshd.read_log().count("Connection from 127.0.0.1") == 2, "our look, and one login"
        ssh = find_ssh(str(box.sshd.port))
        assert os.getpgid(ssh) == ssh
        assert os.tcgetpgrp(terminal.master) != ssh, "the terminal is ours again"
        terminal.key(b"\x03")
        assert terminal.end() == 130
        assert "remote-train logs -f" in terminal.text
    (run,) = [path.name for path in (guarded / "runs").iterdir()]
    assert box.processes(run) != [], "the run goes on"
    refused = laptop.type(guarded, "stop").expect(12)
    assert "without a terminal nobody can be asked for its passphrase" in refused.err


@pytest.mark.slow
def test_ctrl_c_at_the_question_ends_the_command(laptop: Laptop, box: Box, guarded: Path) -> None:
    with open_terminal(laptop, guarded, "run", "train.py") as terminal:
        found = termios.tcgetattr(terminal.master)
        terminal.wait_for("Enter passphrase for key")
        terminal.key(b"\x03")
        assert terminal.end() == 130
        assert termios.tcgetattr(terminal.master) == found
    assert not list((box.root / "runs").glob("*"))


def is_asked(terminal: Terminal, answered: int) -> bool:
    """Wait for a question after so many that were answered, or for what `ps` tells in the end; say which."""
    terminal.wait(
        lambda: terminal.text.count("assphrase ") > answered or "running" in terminal.text, "a question"
    )
    assert terminal.text.count("assphrase ") <= answered + 1, "two at once"
    return "running" not in terminal.text


@pytest.mark.slow
def test_one_asks_at_a_time_and_ctrl_c_leaves_the_terminal_as_it_was(
    laptop: Laptop, box: Box, project: Path
) -> None:
    write_project(project, {"train.py": "import time\ntime.sleep(600)\n"})
    key = make_key(laptop.home / "guarded", passphrase="open sesame")
    (box.sshd.folder / "authorized_keys").write_text(
        f"{public_line(box.sshd.user_key)}\n{public_line(key)}\n"
    )
    names = {"by-ssh": OPENSSH, "by-us": PARAMIKO}
    for guard in ({}, {"identity_file": f'"{key}"'}):
        tables = [f"[hosts.{name}]\n{box.describe(transport=way, **guard)}" for name, way in names.items()]
        laptop.write_hosts("".join(tables))
        for name in names if not guard else ():
            laptop.ok(project, "run", "-d", "--host", name, "train.py")

    with open_terminal(laptop, project, "ps") as terminal:
        answered = 0
        while is_asked(terminal, answered):
            terminal.key(b"open sesame\n")
            answered += 1
        assert terminal.end() == 0
        assert terminal.text.count("running") == 2
        assert "Passphrase of" in terminal.text
        assert "Enter passphrase for key" in terminal.text
    with open_terminal(laptop, project, "ps") as terminal:
        found = termios.tcgetattr(terminal.master)
        terminal.wait_for("assphrase ")
        terminal.key(b"\x03")
        assert terminal.end() == 130
        assert termios.tcgetattr(terminal.master) == found


@pytest.mark.slow
def test_a_new_key_is_asked_about_at_the_terminal(laptop: Laptop, box: Box, project: Path) -> None:
    laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe(transport=OPENSSH)}')
    write_project(project, {"train.py": "print('in there')\n"})
    laptop.trust()
    with open_terminal(laptop, project, "run", "train.py") as terminal:
        terminal.wait_for("Are you sure you want to continue connecting")
        terminal.key(b"yes\n")
        terminal.wait_for("in there")
        assert terminal.end() == 0
    assert known_line(box.sshd) in (laptop.home / ".ssh" / "known_hosts").read_text()


CLUSTER = """Host login.example
    HostName 127.0.0.1
    Port {gate.port}
Host a100
    HostName 127.0.0.1
    Port {box.port}
    ProxyJump {user}@login.example
    ControlPath ~/.ssh/cm-%r@%h:%p
"""


@pytest.mark.slow
def test_a_connection_shared_once_a_day_leads_through_a_jump_host_without_a_login(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path
) -> None:
    """What docs/hosts.md says of a university: ssh's master is made by the user, and ours finds it."""
    write_project(project, {"train.py": "print('in')\n"})
    # Sockets have short paths only.
    with running_sshd(tmp_path / "gate") as gate, tempfile.TemporaryDirectory(dir="/tmp") as short:
        (gate.folder / "authorized_keys").write_text(public_line(box.sshd.user_key) + "\n")
        laptop.trust(known_line(box.sshd), known_line(gate))
        config = laptop.home / ".ssh" / "config"
        said = CLUSTER.format(gate=gate, box=box.sshd, user=USER).replace("~/.ssh", short)
        config.write_text(f"{said}Host *\n    IdentityFile {box.sshd.user_key}\n{config.read_text()}")
        keys = dict.fromkeys(("address", "port", "identity_file"), "")
        laptop.write_hosts(f"[hosts.a100]\n{box.describe(transport=OPENSSH, **keys)}")
        master = subprocess.Popen(["ssh", "-F", str(config), "-NM", "a100"], stdin=subprocess.DEVNULL)
        try:
            wait_until(Path(short, f"cm-{USER}@127.0.0.1:{box.sshd.port}").exists, "the master")
            logins = [sshd.read_log().count("Accepted publickey") for sshd in (gate, box.sshd)]
            assert laptop.ok(project, "run", "--host", "a100", "train.py").out == b"in\n"
            assert logins == [sshd.read_log().count("Accepted publickey") for sshd in (gate, box.sshd)]
        finally:
            master.kill()
            master.wait()


def find_ssh(port: str) -> int:
    """The one ssh of this machine that was started for a port."""
    (found,) = subprocess.run(
        ["pgrep", "-f", f"^[^ ]*ssh .*-p {port} "], capture_output=True, text=True, check=True
    ).stdout.split()
    return int(found)
