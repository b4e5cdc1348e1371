"""Accounts with shells, rc files and homes of every kind, on one real sshd, and none of them on this machine.

The sshd runs in a mount namespace of its own, with its own /etc/passwd and /home: root alone can make that.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from remote_train.config.ssh_target import SshWay
from remote_train.transport.openssh import OpensshTransport
from remote_train.transport.openssh_command import Policy
from remote_train.transport.paramiko_ssh import ParamikoTransport
from tests.sshd import Sshd, known_line_for, make_key, running_sshd

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from remote_train.transport import Transport
    from tests.shells.hosts import Host

PYENV = Path("~/.pyenv").expanduser()
FIRST_UID = 61000
KINDS = ("ed25519", "ecdsa", "rsa", "certificate")
GATE = "gate"
"""An ordinary account to jump through, on an sshd of its own that knows nobody else, has another key and runs nothing."""


def need_root() -> None:
    """Skip where no namespace can be made."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("accounts of their own need root and unshare")


def lacks(host: Host) -> str:
    """Return what of a host this machine does not have."""
    shell = host.shell.replace("/opt/busybox/sh", "/bin/busybox")
    if not Path(shell).exists() and "no-such" not in shell:
        return f"no {shell} here"
    python = host.first("python", "")
    if python.startswith("/mnt/") and not (PYENV / python.removeprefix("/mnt/")).exists():
        return f"no Python {python.split('/')[3]} here"
    return ""


def need(host: Host) -> None:
    """Skip a host whose shell or Python this machine does not have."""
    if why := lacks(host):
        pytest.skip(why)


@dataclass
class Accounts:
    """A running sshd and its accounts, one for each host; and another one in front of it."""

    sshd: Sshd
    gate: Sshd
    names: dict[str, str]
    """A host's label -> its login name."""

    def transport(
        self, host: Host, way: str = "paramiko", kind: str = "ed25519", depth: int = 0
    ) -> Transport:
        """Return a way in: by one of our transports, with a key of a kind, through some jump hosts."""
        user, key = self.names[host.label], self.sshd.folder / f"id_{kind}"
        target = self.sshd.target(user=user, identity_files=(key,), identities_only=True)
        gate = replace(target, user=GATE, port=self.gate.port)
        target = replace(target, jumps=(gate,) * depth)
        if way == "paramiko":
            return ParamikoTransport(target)
        options = [f"IdentityFile {key}", "IdentitiesOnly yes", f"UserKnownHostsFile {self.sshd.known_hosts}"]
        config = self.sshd.folder / f"ssh_config_{kind}"
        config.write_text("\n".join([*options, "GlobalKnownHostsFile none", "IdentityAgent none"]) + "\n")
        program, arguments = ("ssh", "-F", str(config)), ("-l", GATE, "-p", str(gate.port), "--", "127.0.0.1")
        hop = SshWay("127.0.0.1", program, arguments, proxied=False, patient=False, keywords=frozenset())
        arguments = ("-l", user, "-p", str(target.port), "--", "127.0.0.1")
        ssh = replace(hop, arguments=arguments, proxied=depth > 0, jumps=(hop,) * depth)
        policy = Policy(strict="yes", prompts=False, known_hosts_files=(self.sshd.known_hosts,))
        return OpensshTransport(target, [ssh], policy)


@contextlib.contextmanager
def running_accounts(folder: Path, hosts: Sequence[Host]) -> Iterator[Accounts]:
    """Run an sshd that has an account for each host until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    homes = folder / "homes"
    homes.mkdir()
    homes.chmod(0o755)
    names = {host.label: f"c{number}" for number, host in enumerate(hosts)}
    mounts = [write_account(homes, FIRST_UID + number, host) for number, host in enumerate(hosts)]
    write_users(folder, hosts)
    make_keys(folder)
    matches = ["\n".join([f"Match User {names[host.label]}", *host.sshd]) for host in hosts if host.sshd]
    known = (
        'cat "$1"/id_ed25519.pub "$1"/id_ecdsa.pub "$1"/id_rsa.pub > /home/keys; echo all > /home/principals'
    )
    lines = ["AuthorizedKeysFile /home/keys", "PrintMotd yes", "MaxStartups 200"]
    lines += [f"TrustedUserCAKeys {folder}/ca.pub", "AuthorizedPrincipalsFile /home/principals"]
    (folder / "matches").write_text("\n".join(matches) + "\n")
    gated = [*lines, f"AllowUsers {GATE}", "ForceCommand echo nothing runs here"]
    lines += [f"DenyUsers {GATE}", f"Include {folder}/matches"]
    with (
        running_sshd(folder, lines, prefix=enter_world(folder, *mounts, known)) as sshd,
        running_sshd(folder / "gate", gated, prefix=enter_world(folder)) as gate,
    ):
        with sshd.known_hosts.open("a") as file:
            file.write(known_line_for(gate, gate.port))
        yield Accounts(sshd, gate, names)


def make_keys(folder: Path) -> None:
    """Make keys of every kind but the first, which every sshd here has; the last may log in by its certificate alone."""
    for kind in KINDS[1:3]:
        make_key(folder / f"id_{kind}", kind)
    authority, key = make_key(folder / "ca"), make_key(folder / "id_certificate")
    sign = ["ssh-keygen", "-q", "-s", str(authority), "-I", "somebody", "-n", "all", f"{key}.pub"]
    subprocess.run(sign, check=True)


def enter_world(folder: Path, *commands: str) -> list[str]:
    """Return the command that runs another one in a namespace of its own, where some others ran before."""
    script = "\n".join([*make_world(folder), *commands, 'shift; exec "$@"'])
    return ["unshare", "-m", "--propagation", "private", "sh", "-ec", script, "sh", str(folder)]


def make_world(folder: Path) -> list[str]:
    """Return the commands that make the namespace: users, homes, old Pythons, no /dev/shm."""
    files = [f"mount --bind {folder}/{name} /etc/{name}" for name in ("passwd", "shadow", "group")]
    world = [f"mount --bind {folder}/homes /home", *files, "umount -l /dev/shm || true"]
    world += [
        "mount -t tmpfs -o mode=755 none /opt",
        "mkdir /opt/busybox",
        "ln -s /bin/busybox /opt/busybox/sh",
    ]
    return world + ([f"mount --bind {PYENV} /mnt"] if PYENV.is_dir() else [])


def write_users(folder: Path, hosts: Sequence[Host]) -> None:
    """Write passwd, shadow and group: this machine's, and the accounts."""
    rows: dict[str, list[str]] = {"passwd": [], "shadow": [], "group": []}
    accounts = [(f"c{number}", FIRST_UID + number, host.shell) for number, host in enumerate(hosts)]
    for name, uid, shell in [(GATE, FIRST_UID - 1, "/bin/sh"), *accounts]:
        rows["passwd"].append(f"{name}:x:{uid}:{uid}::/home/{name}:{shell}")
        rows["shadow"].append(f"{name}:*:19000:0:99999:7:::")
        rows["group"].append(f"{name}:x:{uid}:")
    for name, more in rows.items():
        (folder / name).write_text(Path("/etc", name).read_text() + "\n".join(more) + "\n")


def write_account(homes: Path, uid: int, host: Host) -> str:
    """Write an account's home; return the commands that make the rest of it."""
    home = homes / f"c{uid - FIRST_UID}"
    home.mkdir()
    for trait in host.traits:
        for name, text in trait.files.items():
            (home / name).write_text(text)
            (home / name).chmod(0o755)
    if host.rc is not None:
        (home / host.rc[0]).parent.mkdir(parents=True, exist_ok=True)
        (home / host.rc[0]).write_text(host.rc[1])
    for path in [home, *home.rglob("*")]:
        os.chown(path, uid, uid)
    commands = [trait.mount for trait in host.traits if trait.mount]
    return "\n".join([f"H=/home/{home.name} U={uid}", *commands]) if commands else "true"
