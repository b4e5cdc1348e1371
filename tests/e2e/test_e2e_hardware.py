"""A key that no program can read: PKCS#11, by softhsm2 in the place of a card, behind a real sshd."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import write_project
from tests.e2e.terminal import open_terminal
from tests.sshd import running_agent

if TYPE_CHECKING:
    from tests.e2e.machines import Box, Laptop

pytestmark = [pytest.mark.sshd, pytest.mark.slow, pytest.mark.timeout(100)]

PIN = "1234"
PLACES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so")


@pytest.fixture
def provider(laptop: Laptop, box: Box, monkeypatch: pytest.MonkeyPatch) -> str:
    """The library of a card with the one key that the host takes."""
    found = next(filter(os.path.exists, PLACES), None)
    if found is None or shutil.which("softhsm2-util") is None or shutil.which("openssl") is None:
        pytest.skip("a key behind PKCS#11 needs softhsm2 and openssl")
    folder = laptop.home / "card"
    (folder / "tokens").mkdir(parents=True)
    config, key = folder / "conf", folder / "key.pem"
    config.write_text(f"directories.tokendir = {folder}/tokens\nobjectstore.backend = file\n")
    laptop.extra["SOFTHSM2_CONF"] = str(config)
    monkeypatch.setenv("SOFTHSM2_CONF", str(config))  # of an agent too
    for argv in (
        ["openssl", "genpkey", "-algorithm", "RSA", "-out", str(key)],
        ["softhsm2-util", "--init-token", "--free", "--label", "card", "--pin", PIN, "--so-pin", "5678"],
        [
            "softhsm2-util",
            "--import",
            str(key),
            "--token",
            "card",
            "--label",
            "k",
            "--id",
            "a1",
            "--pin",
            PIN,
        ],
    ):
        subprocess.run(argv, check=True, capture_output=True)
    key.unlink()
    public = subprocess.run(["ssh-keygen", "-D", found], check=True, capture_output=True, text=True).stdout
    (box.sshd.folder / "authorized_keys").write_text(public)
    return found


def test_a_pin_is_asked_for_once_and_the_card_logs_in(
    provider: str, laptop: Laptop, box: Box, tmp_path: Path
) -> None:
    project = write_project(tmp_path / "project", {"train.py": "print('in there')\n"})
    laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe(identity_file="")}')
    config = laptop.home / ".ssh" / "config"
    config.write_text(f"{config.read_text()}  PKCS11Provider {provider}\n")

    with open_terminal(laptop, project, "run", "train.py") as terminal:
        terminal.wait_for("Enter PIN for 'card'")
        terminal.key(PIN.encode() + b"\n")
        terminal.wait_for("in there")
        assert terminal.end() == 0, terminal.text
        assert f"ssh itself is used: ssh_config says PKCS11Provider {provider}" in terminal.text
        assert terminal.text.count("Enter PIN") == 1
        assert PIN not in terminal.text
    refused = laptop.type(project, "run", "train.py").expect(12)
    assert f"ssh-add -s {provider}" in refused.err, "ssh leaves the card alone without a terminal"


@pytest.mark.parametrize("transport", ["paramiko", "openssh"])
def test_a_card_in_an_agent_asks_nobody(
    transport: str, provider: str, laptop: Laptop, box: Box, tmp_path: Path
) -> None:
    project = write_project(tmp_path / "project", {"train.py": "print('in there')\n"})
    described = box.describe(identity_file="", transport=f'"{transport}"')
    laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{described}')
    asked = tmp_path / "askpass"
    asked.write_text(f"#!/bin/sh\necho {PIN}\n")
    asked.chmod(0o700)
    with tempfile.TemporaryDirectory(dir="/tmp") as short, running_agent(Path(short), ()) as agent:
        laptop.extra["SSH_AUTH_SOCK"] = str(agent)
        answers = {"SSH_ASKPASS": str(asked), "SSH_ASKPASS_REQUIRE": "force"}
        subprocess.run(
            ["ssh-add", "-s", provider],
            check=True,
            env=os.environ | laptop.extra | answers,
            capture_output=True,
        )
        assert laptop.ok(project, "run", "train.py").out == b"in there\n"
