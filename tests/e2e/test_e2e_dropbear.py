"""A host whose SSH server is dropbear, as on a router, a NAS or a small container; the real one, where it is installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import Box, Laptop, kill_leftovers, write_project
from tests.sshd import PATIENCE, USER, Sshd, free_port, known_line_for, make_key, public_line, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.sshd, pytest.mark.slow, pytest.mark.timeout(200)]

SCRIPT = "import pathlib\npathlib.Path('out').mkdir()\npathlib.Path('out/ckpt.pt').write_bytes(bytes(3 << 20))\nprint('done')\n"
PROJECT = 'checkpoints = ["out/*.pt"]\n'


@contextlib.contextmanager
def running_dropbear(folder: Path, home: Path) -> Iterator[Sshd]:
    """Run a dropbear on a loopback port; it knows no other file of keys than that of the account's home."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("dropbear", "dropbearkey", "unshare"))):
        pytest.skip("dropbear with a home of its own needs root, unshare and dropbear")
    folder.mkdir()
    key = folder / "host_ed25519"
    told = subprocess.run(
        ["dropbearkey", "-t", "ed25519", "-f", key], check=True, capture_output=True, text=True
    ).stdout
    line = next(line for line in told.splitlines() if line.startswith("ssh-ed25519 "))
    key.with_name(key.name + ".pub").write_text(line + "\n")
    sshd = Sshd(folder, free_port(), (key,))
    make_key(sshd.user_key)
    (home / ".ssh").mkdir(mode=0o700)
    (home / ".ssh" / "authorized_keys").write_text(public_line(sshd.user_key) + "\n")
    sshd.known_hosts.write_text(known_line_for(sshd, sshd.port))
    users = Path("/etc/passwd").read_text().splitlines()
    rows = [row.split(":") for row in users]
    (folder / "passwd").write_text(
        "".join(":".join([*row[:5], str(home) if row[0] == USER else row[5], row[6]]) + "\n" for row in rows)
    )
    script = 'mount --bind "$1" /etc/passwd; shift; exec "$@"'
    prefix = ["unshare", "-m", "--propagation", "private", "sh", "-ec", script, "sh", f"{folder}/passwd"]
    server = ["dropbear", "-F", "-E", "-s", "-m", "-r", str(key), "-p", f"127.0.0.1:{sshd.port}"]
    with (folder / "sshd.log").open("w") as log:
        process = subprocess.Popen(
            [*prefix, *server, "-P", f"{folder}/pid"], stdin=subprocess.DEVNULL, stderr=log
        )
    try:
        wait_until(lambda: (folder / "pid").exists() or process.poll() is not None, "dropbear to listen")
        assert process.poll() is None, sshd.read_log()
        yield sshd
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    home = tmp_path / "home"
    home.mkdir()
    with running_dropbear(tmp_path / "dropbear", home) as sshd:
        made = Box(sshd, home)
        try:
            yield made
        finally:
            kill_leftovers(made.root)


@pytest.mark.parametrize("transport", ["paramiko", "openssh"])
def test_a_dropbear_is_a_host_like_any_other(
    transport: str, laptop: Laptop, box: Box, tmp_path: Path
) -> None:
    project = write_project(tmp_path / "project", {"train.py": SCRIPT, "remote-train.toml": PROJECT})
    described = box.describe(transport=f'"{transport}"')
    laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{described}')

    checked = laptop.ok(project, "hosts", "check", "box", "--json")
    assert checked.event("check")["ok"]
    done = laptop.ok(project, "run", "train.py")
    assert done.out == b"done\n"
    (pulled,) = (project / "runs").glob("*/files/out/ckpt.pt")
    assert pulled.read_bytes() == bytes(3 << 20)
    assert laptop.ok(project, "logs").out == b"done\n"
    assert "dropbear" in laptop.ok(project, "doctor", "box").out.decode()

    write_project(project, {"train.py": "import time\nprint('up', flush=True)\ntime.sleep(600)\n"})
    laptop.ok(project, "run", "-d", "train.py")
    laptop.ok(project, "stop", "--grace", "1")
    text = laptop.ok(project, "ps").out.decode()
    assert "stopped" in text

    (box.home / ".ssh" / "authorized_keys").write_text("")
    refused = laptop.type(project, "run", "train.py").expect(12)
    assert "publickey" in refused.err
