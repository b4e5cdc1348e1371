"""A host that wants the account's password and then a code, by the real PAM behind a real sshd.

pam_unix and pam_google_authenticator in a mount namespace that has an own /etc/pam.d/sshd and /etc/shadow; its codes are
good for one login.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import ONE_THREAD, Box, Laptop, kill_leftovers, write_project
from tests.e2e.terminal import open_terminal
from tests.faults.sshd_control import kill_sessions
from tests.sshd import USER, running_sshd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.terminal import Terminal

pytestmark = [pytest.mark.sshd, pytest.mark.slow, pytest.mark.timeout(200)]

MODULE = "pam_google_authenticator.so"
PASSWORD = "correct horse"
CODES = ("11223344", "22334455", "33445566")
SECOND = "auth required {module} secret={folder}/secret user=root\n"
STACK = "auth required pam_unix.so\n{second}account required pam_permit.so\nsession required pam_permit.so\n"


def need_pam() -> None:
    programs = ("unshare", "openssl", "sshd")
    if os.geteuid() != 0 or not all(map(shutil.which, programs)):
        pytest.skip("an own PAM needs root, unshare, openssl and sshd")
    if not list(Path("/").glob(f"lib/*/security/{MODULE}")):
        pytest.skip(f"no {MODULE} here")


def write_world(folder: Path) -> list[str]:
    """Write the password and the codes; return the command that runs another one where they hold."""
    folder.mkdir()
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", PASSWORD], check=True, capture_output=True, text=True
    ).stdout.strip()
    others = [row for row in Path("/etc/shadow").read_text().splitlines() if not row.startswith(f"{USER}:")]
    (folder / "shadow").write_text("\n".join([f"{USER}:{hashed}:19000:0:99999:7:::", *others]) + "\n")
    (folder / "shadow").chmod(0o600)
    secret = folder / "secret"
    secret.write_text("\n".join(["JBSWY3DPEHPK3PXPJBSWY3DPEH", '" TOTP_AUTH', *CODES]) + "\n")
    secret.chmod(0o400)
    second = SECOND.format(module=MODULE, folder=folder)
    (folder / "pam").write_text(STACK.format(second=second))
    script = 'mount --bind "$1/shadow" /etc/shadow; mount --bind "$1/pam" /etc/pam.d/sshd; shift; exec "$@"'
    return ["unshare", "-m", "--propagation", "private", "sh", "-ec", script, "sh", str(folder)]


@pytest.fixture(params=["keyboard-interactive", "publickey,keyboard-interactive"])
def box(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Box]:
    need_pam()
    home = tmp_path / "home"
    home.mkdir()
    prefix = write_world(tmp_path / "world")
    one_thread = " ".join(f"{name}={value}" for name, value in ONE_THREAD.items())
    lines = ["UsePAM yes", "KbdInteractiveAuthentication yes", f"AuthenticationMethods {request.param}"]
    with running_sshd(
        tmp_path / "sshd", [*lines, f'SetEnv "HOME={home}" {one_thread}'], prefix=prefix
    ) as sshd:
        made = Box(sshd, home)
        try:
            yield made
        finally:
            kill_leftovers(made.root)


def answer(terminal: Terminal, code: str) -> None:
    """Type the password and the code as they are asked for."""
    terminal.wait_for("Password:")
    terminal.key(PASSWORD.encode() + b"\n")
    terminal.wait_for("Verification code:")
    terminal.key(code.encode() + b"\n")


@pytest.mark.parametrize("transport", ["paramiko", "openssh"])
def test_two_questions_are_asked_once_and_coming_back_asks_nothing(
    transport: str, laptop: Laptop, box: Box, tmp_path: Path
) -> None:
    script = "import time\nprint('up', flush=True)\ntime.sleep(600)\n"
    project = write_project(tmp_path / "project", {"train.py": script})
    described = box.describe(transport=f'"{transport}"')
    laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{described}')

    refused = laptop.type(project, "run", "train.py").expect(12)
    assert "keyboard-interactive" in refused.err
    with open_terminal(laptop, project, "run", "train.py") as terminal:
        answer(terminal, CODES[0])
        terminal.wait_for("up")
        assert PASSWORD not in terminal.text
        assert "reaching boxbox" not in terminal.text, "a question has a line of its own"
        kill_sessions(box.sshd)
        assert terminal.end(60) == 12, terminal.text
        assert len(re.findall(r'Verification code:(?!")', terminal.text)) == 1
        assert "remote-train logs -f" in terminal.text
    with open_terminal(laptop, project, "stop", "--grace", "1") as terminal:
        answer(terminal, CODES[1])
        assert terminal.end(60) == 0, terminal.text
    with open_terminal(laptop, project, "hosts", "check", "box") as terminal:
        answer(terminal, CODES[1])
        assert terminal.end(60) == 12, "it was good once"
