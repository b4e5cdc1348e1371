"""A real sshd on a loopback port, for any test: own keys, own configuration, own log, nothing of this machine's.

with running_sshd(tmp_path) as sshd:                      # or the fixture `sshd`
    transport = ParamikoTransport(sshd.target())
with running_sshd(tmp_path, ["MaxSessions 1"]) as sshd:   # more lines of sshd_config; the first of a kind wins
"""

from __future__ import annotations

import base64
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from remote_train.config.ssh_target import SshWay
from remote_train.transport.openssh import OpensshTransport
from remote_train.transport.openssh_command import Policy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from remote_train.transport import Channel

USER = pwd.getpwuid(os.getuid()).pw_name
PATIENCE = 60.0  # torchrun and two ranks that import torch took 20 s on two cores with six tests at once


@dataclass(frozen=True)
class SshdTarget:
    """An SshTarget for tests."""

    name: str = "box"
    addresses: Sequence[str] = ("127.0.0.1",)
    port: int = 22
    user: str = USER
    identity_files: Sequence[Path] = ()
    identities_only: bool = False
    identity_agent: str | None = "none"
    known_hosts_files: Sequence[Path] = ()
    hash_known_hosts: bool = False
    host_key_alias: str | None = None
    certificate_files: Sequence[Path] = ()
    address_family: str = "any"
    bind_address: str | None = None
    connect_timeout: int | None = None
    strict_host_key_checking: str = "ask"
    pin: str | None = None
    password: bool = False
    jumps: Sequence[SshdTarget] = ()
    proxy_commands: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sshd:
    """A running sshd and where its things are."""

    folder: Path
    port: int
    host_keys: tuple[Path, ...]

    @property
    def user_key(self) -> Path:
        """A private key that may log in."""
        return self.folder / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """A file that knows this sshd's keys."""
        return self.folder / "known_hosts"

    def target(self, **changes: object) -> SshdTarget:
        """Return a target that logs in here, with `changes` to its fields."""
        fields: dict[str, object] = {
            "port": self.port,
            "identity_files": (self.user_key,),
            "known_hosts_files": (self.known_hosts,),
        }
        return SshdTarget(**(fields | changes))  # type: ignore[arg-type]

    def read_log(self) -> str:
        """Return what sshd has logged (LogLevel DEBUG)."""
        return (self.folder / "sshd.log").read_text(errors="replace")

    def wait_log(self, words: str) -> str:
        """Wait until the log holds `words`; return it."""
        wait_until(lambda: words in self.read_log(), f"{words!r} in {self.folder}/sshd.log")
        return self.read_log()


def wait_until(condition: object, what: str) -> None:
    """Poll a condition every 10 ms, fail after a minute."""
    end = time.monotonic() + PATIENCE
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, f"waited {PATIENCE:g} s for {what}"
        time.sleep(0.01)


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    """Make a key pair with ssh-keygen."""
    argv = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", path.name, "-f", str(path)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    return path


def public_line(key: Path) -> str:
    """Return type and base64 of a key's public half."""
    return " ".join(key.with_name(key.name + ".pub").read_text().split()[:2])


def known_line_for(sshd: Sshd, port: int) -> str:
    """Return lines of known_hosts that trust an sshd behind a port of loopback: its own, or a proxy's."""
    return "".join(f"[127.0.0.1]:{port} {public_line(key)}\n" for key in sshd.host_keys)


def key_bytes(key: Path) -> bytes:
    """Return a key's public half as the protocol writes it."""
    return base64.b64decode(public_line(key).split()[1])


def read_to_end(channel: Channel) -> bytes:
    """Return everything up to the end of a stream."""
    data = bytearray()
    while chunk := channel.receive(PATIENCE):
        data += chunk
    assert chunk == b"", "timed out"
    return bytes(data)


def run(target: SshdTarget, command: str = "echo in", **options: object) -> bytes:
    """Return what a command prints over a transport of its own."""
    from remote_train.transport.paramiko_ssh import ParamikoTransport  # others of us need no paramiko

    transport = ParamikoTransport(target, **options)  # type: ignore[arg-type]
    try:
        return read_to_end(transport.open(command))
    finally:
        transport.close()


def openssh(sshd: Sshd, config: str = "", **options: object) -> OpensshTransport:
    """Return a transport over ssh with an ssh_config of its own: what `target` says, and `config` before it."""
    target = sshd.target()
    lines = [
        config,
        f"IdentityFile {sshd.user_key}",
        "IdentitiesOnly yes",
        f"UserKnownHostsFile {sshd.known_hosts}",
        "GlobalKnownHostsFile none",
    ]
    file = sshd.folder / "ssh_config"
    file.write_text("\n".join(lines) + "\n")
    addresses = options.pop("addresses", target.addresses)
    ways = [make_way(sshd, file, str(address)) for address in addresses]  # type: ignore[attr-defined]
    policy = Policy(strict="yes", prompts=False, known_hosts_files=(sshd.known_hosts,))
    policy = replace(policy, **{key: options.pop(key) for key in list(options) if key in vars(policy)})  # type: ignore[arg-type]
    return OpensshTransport(sshd.target(addresses=addresses), ways, policy, **options)  # type: ignore[arg-type]


def make_way(sshd: Sshd, file: Path, address: str, *, proxied: bool = False) -> SshWay:
    """Return how ssh goes to an address of this sshd with one ssh_config."""
    arguments = ("-l", USER, "-p", str(sshd.port), "--", address)
    return SshWay(address, ("ssh", "-F", str(file)), arguments, proxied, patient=False, keywords=frozenset())


def free_port() -> int:
    """Return a loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_sshd(
    folder: Path,
    lines: Sequence[str] = (),
    kinds: Sequence[str] = ("ed25519",),
    prefix: Sequence[str] = (),
) -> Iterator[Sshd]:
    """Run an sshd with its files under `folder` until the block ends; `prefix` is a command that runs it elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    host_keys = tuple(make_key(folder / f"host_{kind}", kind) for kind in kinds)
    sshd = Sshd(folder, free_port(), host_keys)
    make_key(sshd.user_key)
    (folder / "authorized_keys").write_text(public_line(sshd.user_key) + "\n")
    sshd.known_hosts.write_text(known_line_for(sshd, sshd.port))
    config = [
        *lines,
        f"Port {sshd.port}",
        "ListenAddress 127.0.0.1",
        *(f"HostKey {key}" for key in host_keys),
        f"AuthorizedKeysFile {folder}/authorized_keys",
        *(
            "PermitRootLogin yes",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
        ),
        *("PidFile none", "LogLevel DEBUG", "PrintMotd no", "MaxStartups 100"),
    ]
    (folder / "sshd_config").write_text("\n".join(config) + "\n")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    program = shutil.which("sshd") or "/usr/sbin/sshd"
    argv = [*prefix, program, "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "sshd.log")]
    (folder / "sshd.log").touch()
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        wait_until(
            lambda: "Server listening" in sshd.read_log() or process.poll() is not None, "sshd to listen"
        )
        assert process.poll() is None, sshd.read_log()
        yield sshd
    finally:
        process.terminate()
        process.wait(PATIENCE)


@contextlib.contextmanager
def running_master(sshd: Sshd) -> Iterator[subprocess.Popen[bytes]]:
    """Run a connection of the user's own that others may share (ControlMaster), at `folder/master`."""
    place = sshd.folder / "master"
    options = [
        "ControlMaster=yes",
        f"ControlPath={place}",
        f"UserKnownHostsFile={sshd.known_hosts}",
        "BatchMode=yes",
        "IdentitiesOnly=yes",
    ]
    given = [word for option in options for word in ("-o", option)]
    argv = ["ssh", "-F", "none", "-N", "-i", str(sshd.user_key), "-p", str(sshd.port), *given, "127.0.0.1"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        wait_until(place.exists, "the shared connection")
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE)


@contextlib.contextmanager
def running_agent(folder: Path, keys: Sequence[Path]) -> Iterator[Path]:
    """Run an ssh-agent that holds `keys`; yields its socket."""
    place = folder / "agent.sock"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(place)], stdout=subprocess.DEVNULL)
    try:
        wait_until(place.exists, "the agent's socket")
        environment = os.environ | {"SSH_AUTH_SOCK": str(place)}
        for key in keys:
            subprocess.run(["ssh-add", "-q", str(key)], env=environment, check=True)
        yield place
    finally:
        process.terminate()
        process.wait(PATIENCE)


@contextlib.contextmanager
def serving(*answers: bytes | None) -> Iterator[int]:
    """Listen on a port and treat each connection in turn: send the bytes and close, or None: hold it in silence.

    The last answer is given to every later connection too. Yields the port.
    """
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            turn = 0
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    answer = answers[min(turn, len(answers) - 1)]
                    turn += 1
                    held.append(connection)
                    if answer is not None:
                        with contextlib.suppress(OSError):  # who asked may have left
                            connection.sendall(answer)
                            connection.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)
            for connection in held:
                connection.close()
