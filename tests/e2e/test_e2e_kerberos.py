"""A ticket in the place of a key: a real Kerberos KDC, and a real sshd that takes nothing else."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import Box, Laptop, write_project
from tests.sshd import USER, free_port, public_line, running_sshd, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.sshd, pytest.mark.slow, pytest.mark.timeout(100)]

CLIENT = """[libdefaults]
  default_realm = TEST.LAB
  dns_lookup_kdc = false
  dns_lookup_realm = false
  rdns = false
  dns_canonicalize_hostname = false
  default_ccache_name = FILE:{folder}/tickets
[realms]
  TEST.LAB = {{
    kdc = 127.0.0.1:{port}
  }}
[domain_realm]
  localhost = TEST.LAB
"""
SERVER = """[kdcdefaults]
  kdc_listen = 127.0.0.1:{port}
  kdc_tcp_listen = 127.0.0.1:{port}
[realms]
  TEST.LAB = {{
    database_name = {folder}/principal
    key_stash_file = {folder}/stash
  }}
[logging]
  kdc = FILE:{folder}/kdc.log
"""


def is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@pytest.fixture
def realm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A realm with this user, this host, and a ticket for the user on the laptop."""
    programs = ("krb5kdc", "kadmin.local", "kdb5_util", "kinit")
    if not all(map(shutil.which, programs)):
        pytest.skip(f"a realm needs {', '.join(programs)}")
    folder, port = tmp_path / "realm", free_port()
    folder.mkdir()
    for variable, name, text in (
        ("KRB5_CONFIG", "krb5.conf", CLIENT),
        ("KRB5_KDC_PROFILE", "kdc.conf", SERVER),
    ):
        (folder / name).write_text(text.format(folder=folder, port=port))
        monkeypatch.setenv(variable, str(folder / name))
    monkeypatch.setenv("KRB5_KTNAME", str(folder / "keytab"))
    for argv in (
        ["kdb5_util", "create", "-s", "-P", "master"],
        ["kadmin.local", "-q", f"addprinc -pw secret {USER}"],
        ["kadmin.local", "-q", "addprinc -randkey host/localhost"],
        ["kadmin.local", "-q", f"ktadd -k {folder}/keytab host/localhost"],
    ):
        subprocess.run(argv, check=True, capture_output=True)
    kdc = subprocess.Popen(["krb5kdc", "-n"], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: is_open(port), "the KDC")
        subprocess.run(["kinit", USER], check=True, input=b"secret\n", capture_output=True)
        yield folder
    finally:
        kdc.terminate()
        kdc.wait(30)


@pytest.fixture
def box(realm: Path, tmp_path: Path) -> Iterator[Box]:
    """A host that takes tickets only."""
    home = tmp_path / "home"
    home.mkdir()
    assert (realm / "tickets").exists()
    lines = ["GSSAPIAuthentication yes", "GSSAPIStrictAcceptorCheck no", f"SetEnv HOME={home}"]
    with running_sshd(tmp_path / "sshd", [*lines, "AuthenticationMethods gssapi-with-mic"]) as sshd:
        yield Box(sshd, home)


def test_a_ticket_logs_in_without_a_question(laptop: Laptop, box: Box, tmp_path: Path) -> None:
    project = write_project(tmp_path / "project", {"train.py": "print('in there')\n"})
    laptop.extra["KRB5_CONFIG"] = os.environ["KRB5_CONFIG"]
    laptop.trust(f"[localhost]:{box.sshd.port} {public_line(box.sshd.host_keys[0])}")
    described = box.describe(address='["localhost"]', identity_file="")
    table = f'default = ["box"]\n[hosts.box]\n{described}'
    laptop.write_hosts(table)
    refused = laptop.type(project, "run", "train.py").expect(12)
    assert 'transport = "openssh" in hosts.toml uses ssh for this host' in refused.err

    laptop.write_hosts(table + 'transport = "openssh"\n')
    config = laptop.home / ".ssh" / "config"
    config.write_text(f"{config.read_text()}  GSSAPIAuthentication yes\n")
    assert laptop.ok(project, "run", "train.py").out == b"in there\n"
    assert "Accepted gssapi-with-mic" in box.sshd.read_log()
    (tmp_path / "realm" / "tickets").unlink()
    assert "gssapi-with-mic" in laptop.type(project, "run", "train.py").expect(12).err
