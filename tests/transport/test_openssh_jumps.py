"""Jump hosts over the user's own ssh, as hosts.toml and ssh_config name them: each is held to our policy."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import subprocess
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from remote_train.config.host_spec import HostSpec
from remote_train.config.host_target import read_target
from remote_train.config.ssh_paths import SshPlace
from remote_train.errors import ConnectionLost, HostKeyRefused, LoginRefused, Unreachable
from remote_train.transport.known_hosts import make_fingerprint
from remote_train.transport.openssh import OpensshTransport
from remote_train.transport.openssh_command import Policy
from tests.sshd import (
    Sshd,
    free_port,
    key_bytes,
    known_line_for,
    make_key,
    public_line,
    read_to_end,
    running_sshd,
    serving,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.sshd
ME = pwd.getpwuid(os.getuid()).pw_name
"""Options that a careless ssh_config has for every host, and which must reach no ssh of ours."""
LAX = "NoHostAuthenticationForLocalhost yes\n  ForwardAgent yes\n  ProxyUseFdpass yes\n"


@dataclass
class World:
    """A host that only its jump hosts lead to, the nearest first, and a home whose ssh_config and known_hosts count."""

    home: Path
    box: Sshd
    hops: tuple[Sshd, ...]

    @property
    def known(self) -> Path:
        return self.home / ".ssh" / "known_hosts"

    def know(self, *sshds: Sshd) -> None:
        self.known.write_text("".join(known_line_for(each, each.port) for each in sshds))

    def configure(self, text: str = "") -> None:
        lines = [
            text,
            "Host *",
            "  IdentitiesOnly yes",
            f"  IdentityFile {self.box.user_key}",
            f"  UserKnownHostsFile {self.known}",
            "  GlobalKnownHostsFile none",
        ]
        (self.home / ".ssh" / "config").write_text("\n".join(lines) + "\n")

    def host(self, sshd: Sshd, name: str, **changes: object) -> HostSpec:
        spec = HostSpec(name=name, address=("127.0.0.1",), port=sshd.port, transport="openssh")
        return replace(spec, **changes)  # type: ignore[arg-type]

    def behind(self, *hops: HostSpec, **changes: object) -> HostSpec:
        """The box as hosts.toml has it, behind hosts of hosts.toml."""
        names = tuple(hop.name for hop in hops)
        return self.host(self.box, "box", **{"proxy_jump": names, "jumps": hops, **changes})

    def gates(self) -> list[HostSpec]:
        return [self.host(sshd, f"gate{number}") for number, sshd in enumerate(self.hops)]

    def gate_of_two(self) -> HostSpec:
        """The nearest jump host, with two addresses that are both known."""
        near = replace(self.gates()[0], address=("127.0.0.1", "localhost"))
        lines = [line.split(" ", 1)[1] for line in known_line_for(self.hops[0], 1).splitlines()]
        with self.known.open("a") as file:
            file.writelines(f"[localhost]:{near.port} {line}\n" for line in lines)
        return near

    def transport(self, spec: HostSpec, *, prompts: bool = False) -> OpensshTransport:
        place = SshPlace(self.home, Path("/nowhere"), {**os.environ, "HOME": str(self.home)}, ME, "ssh")
        target = read_target(spec, place)
        assert target.need
        policy = Policy(target.strict_host_key_checking, prompts, spec.host_key, target.known_hosts_files)
        return OpensshTransport(target, target.ways, policy)

    def run(self, spec: HostSpec, *, prompts: bool = False) -> bytes:
        with contextlib.closing(self.transport(spec, prompts=prompts)) as transport:
            return read_to_end(transport.open("echo in"))

    def refused(self, spec: HostSpec, by: Sshd) -> HostKeyRefused:
        """The refusal of a jump host's key, after a check that no login was begun there."""
        before = len(by.read_log())
        with pytest.raises(HostKeyRefused) as caught:
            self.run(spec)
        wait_until(lambda: "do_cleanup" in by.read_log()[before:], "the hop to see the end")
        assert "userauth" not in by.read_log()[before:], "nothing may be sent to a wrong host"
        assert caught.value.exit_code == 11
        return caught.value


@pytest.fixture(scope="module")
def sshds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sshd, Sshd, Sshd]]:
    with contextlib.ExitStack() as stack:
        folders = [tmp_path_factory.mktemp(name) for name in ("box", "near", "far")]
        box, near, far = (stack.enter_context(running_sshd(folder)) for folder in folders)
        yield box, near, far


@pytest.fixture
def world(sshds: tuple[Sshd, Sshd, Sshd], tmp_path: Path) -> World:
    box, *hops = sshds
    made = World(tmp_path, box, tuple(hops))
    (tmp_path / ".ssh").mkdir()
    for hop in hops:
        (hop.folder / "authorized_keys").write_text(public_line(box.user_key) + "\n")
    made.configure()
    made.know(*sshds)
    return made


@pytest.mark.slow  # logins through several sshds; by day the refusals below have a way through
def test_hosts_toml_leads_through_one_and_through_two(world: World) -> None:
    near, far = world.gates()
    assert world.run(world.behind(near)) == b"in\n"
    logins = world.hops[1].read_log().count("Accepted publickey")
    assert world.run(world.behind(near, far)) == b"in\n"
    assert world.hops[1].read_log().count("Accepted publickey") == logins + 1
    nested = replace(far, proxy_jump=("gate0",), jumps=(near,))
    assert world.run(world.behind(nested)) == b"in\n", "a jump host behind another"


@pytest.mark.slow  # logins through several sshds; by day the refusals below have a way through
def test_what_hosts_toml_says_of_a_jump_host_counts(world: World, tmp_path: Path) -> None:
    key = make_key(tmp_path / "own 100% key")
    hop = world.hops[0]
    (hop.folder / "authorized_keys").write_text(public_line(key) + "\n")
    near = world.host(hop, "gate", user=ME, identity_file=str(key))
    assert world.run(world.behind(near)) == b"in\n"
    with pytest.raises(LoginRefused, match="a host on the way"):
        world.run(world.behind(replace(near, identity_file=None)))


def test_no_jump_host_of_hosts_toml_overrules_ssh_config(world: World) -> None:
    world.configure("Host 127.0.0.1\n  ProxyJump nobody@nowhere.invalid\n")
    assert world.run(world.behind()) == b"in\n"
    world.configure("Host 127.0.0.1\n  ProxyCommand false\n")
    assert world.run(world.behind()) == b"in\n"
    near = replace(world.gates()[0], proxy_jump=())
    assert world.run(world.behind(near)) == b"in\n"


def test_a_pin_of_a_jump_host_is_asked_for(world: World, tmp_path: Path) -> None:
    """Also where ssh_config lets any key pass, and known_hosts too."""
    world.configure(f"Host *\n  StrictHostKeyChecking no\n  {LAX}")
    near, far = world.gates()
    other = make_key(tmp_path / "other")
    pin, wrong = (make_fingerprint(key_bytes(key)) for key in (world.hops[0].host_keys[0], other))
    pinned = make_fingerprint(key_bytes(world.box.host_keys[0]))
    world.known.write_text("")
    far = replace(far, host_key=make_fingerprint(key_bytes(world.hops[1].host_keys[0])))
    behind = world.behind(replace(near, host_key=pin), far, host_key=pinned)
    assert world.run(behind) == b"in\n"
    error = world.refused(world.behind(replace(near, host_key=wrong), far, host_key=pinned), world.hops[0])
    assert "the key of jump host gate0" in error.message
    assert pin in error.message, "what it offers"
    assert wrong in error.message
    assert "hosts trust gate0" in (error.hint or "")


@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_jump_host_whose_key_has_changed_is_told_in_full(number: int, world: World, tmp_path: Path) -> None:
    hop, other = world.hops[number], make_key(tmp_path / "other")
    lines = [known_line_for(each, each.port) for each in (world.box, *world.hops) if each is not hop]
    world.known.write_text("".join(lines) + f"[127.0.0.1]:{hop.port} {public_line(other)}\n")
    error = world.refused(world.behind(*world.gates()), hop)
    for words in (
        f"the key of jump host gate{number}",
        make_fingerprint(key_bytes(other)),
        make_fingerprint(key_bytes(hop.host_keys[0])),
        f"{world.known}:3",
    ):
        assert words in error.message
    assert f"hosts trust gate{number}" in (error.hint or "")
    assert error.facts["verdict"] == "changed"


def test_an_unknown_or_revoked_jump_host_is_named(world: World) -> None:
    near = world.hops[0]
    world.know(world.box, world.hops[1])
    error = world.refused(world.behind(*world.gates()), near)
    assert error.facts["verdict"] == "unknown"
    assert "the key of jump host gate0" in error.message
    world.known.write_text(world.known.read_text() + f"@revoked * {public_line(near.host_keys[0])}\n")
    error = world.refused(world.behind(*world.gates()), near)
    assert error.facts["verdict"] == "revoked"
    assert f"{world.known}:3" in error.message


@pytest.mark.slow  # by day a host's key, in test_openssh
def test_a_jump_hosts_key_that_a_file_revokes_or_cannot_be_looked_up_in_is_told_so(
    world: World, tmp_path: Path
) -> None:
    near, revoked = world.hops[0], tmp_path / "revoked"
    argv = ["ssh-keygen", "-q", "-k", "-f", str(revoked), f"{near.host_keys[0]}.pub"]
    subprocess.run(argv, check=True)
    for file, verdict in ((revoked, "revoked"), (tmp_path / "none", "refused")):
        world.configure(
            f'Match originalhost 127.0.0.1 exec "test %p = {near.port}"\n  RevokedHostKeys {file}\n'
        )
        error = world.refused(world.behind(*world.gates()), near)
        assert error.facts["verdict"] == verdict
        assert str(file) in error.message


def test_a_known_hosts_file_of_another_address_counts(world: World) -> None:
    world.configure(f"UserKnownHostsFile {world.home}/known_%h\n")
    (world.home / "known_127.0.0.1").write_text(known_line_for(world.box, world.box.port))
    spec = world.host(world.box, "box", address=("127.0.0.2", "127.0.0.1"))
    assert world.run(spec) == b"in\n"
    other = make_key(world.home / "other")
    (world.home / "known_127.0.0.2").write_text(f"[127.0.0.2]:{world.box.port} {public_line(other)}\n")
    (world.home / "known_127.0.0.1").unlink()
    assert world.refused(spec, world.box).facts["verdict"] == "changed"


def test_the_known_hosts_files_of_all_addresses_count_whichever_answers(world: World) -> None:
    """Also where the first address has all of them, and the one that answers only a part."""
    ka, kb = (world.home / name for name in ("ka", "kb"))
    spec = world.host(world.box, "box", address=("127.0.0.2", "127.0.0.1"))
    narrow = f"Match host 127.0.0.1\n  UserKnownHostsFile {kb}\n"
    kb.write_text(known_line_for(world.box, world.box.port))
    ka.write_text(f"@revoked * {public_line(world.box.host_keys[0])}\n")
    world.configure(f"{narrow}Match host 127.0.0.2\n  UserKnownHostsFile {kb} {ka}\n")
    assert world.refused(spec, world.box).facts["verdict"] == "revoked"
    ka.write_text(kb.read_text())
    kb.write_text("")
    world.configure(f"{narrow}Match host 127.0.0.2\n  UserKnownHostsFile {ka} {kb}\n")
    assert world.run(spec) == b"in\n"


def test_a_jump_host_is_asked_once_for_each_address_behind_it(world: World) -> None:
    """However many addresses it has itself: a person may be asked there each time."""
    near = world.gate_of_two()
    before = world.hops[0].read_log().count("Accepted publickey")
    assert world.run(world.behind(near, address=("127.0.0.3", "127.0.0.1"))) == b"in\n"
    assert world.hops[0].read_log().count("Accepted publickey") - before == 2
    with pytest.raises(Unreachable):
        world.run(world.behind(near, port=free_port()))
    assert world.hops[0].read_log().count("Accepted publickey") - before == 3


@contextlib.contextmanager
def closing_at_once(address: str, port: int | None) -> Iterator[None]:
    """Listen there, and close the first connection."""
    with socket.create_server((address, port)) as server:

        def close() -> None:
            server.accept()[0].close()

        threading.Thread(target=close, daemon=True).start()
        yield


def test_a_jump_host_is_asked_once_for_a_host_that_closes_at_once(world: World) -> None:
    near, log = world.gate_of_two(), world.hops[0].read_log
    before = log().count("Accepted publickey")
    with serving(b"") as port:
        with pytest.raises(ConnectionLost, match="before its SSH banner"):
            world.run(world.behind(near, port=port), prompts=True)
        assert log().count("Accepted publickey") - before == 1
    with closing_at_once("127.0.0.3", world.box.port):
        assert world.run(world.behind(near, address=("127.0.0.3", "127.0.0.1")), prompts=True) == b"in\n"
    assert log().count("Accepted publickey") - before == 3, "its other address is tried"


@pytest.mark.slow  # logins through an sshd; by day that of a person, above
def test_where_nobody_is_asked_a_host_that_closes_at_once_is_tried_twice(world: World) -> None:
    near, log = world.gate_of_two(), world.hops[0].read_log
    before = log().count("Accepted publickey")
    with serving(b"") as port, pytest.raises(Unreachable, match="twice"):
        world.run(world.behind(near, port=port))
    assert log().count("Accepted publickey") - before == 2, "and by one address of the jump host"


@pytest.mark.slow  # a login through an sshd; by day a host's own addresses, above
def test_a_jump_host_that_closes_at_once_has_another_address(world: World) -> None:
    near = replace(world.gates()[0], address=("127.0.0.2", "127.0.0.1"))
    with closing_at_once("127.0.0.2", near.port):
        assert world.run(world.behind(near), prompts=True) == b"in\n"


def test_a_jump_host_that_closes_has_asked_nobody_and_is_tried_twice(world: World) -> None:
    with serving(b"") as port, pytest.raises(Unreachable, match="twice"):
        world.run(world.behind(replace(world.gates()[0], port=port)), prompts=True)


def test_the_address_of_a_jump_host_that_answered_is_named(world: World) -> None:
    world.know(world.box, world.hops[1])
    near = replace(world.gates()[0], address=("127.0.0.2", "127.0.0.1"))
    assert "jump host gate0 (127.0.0.1)" in world.refused(world.behind(near), world.hops[0]).message


def test_a_proxy_jump_of_ssh_config_is_held_to_the_same(world: World) -> None:
    near, far = world.hops
    config = (
        f"Host near\n  HostName 127.0.0.1\n  Port {near.port}\n"
        f"Host far\n  HostName 127.0.0.1\n  Port {far.port}\n  ProxyJump near\n"
        f"Host b\n  HostName 127.0.0.1\n  Port {world.box.port}\n  ProxyJump far\n"
    )
    box = HostSpec(name="b", address=("b",), transport="openssh")
    world.configure(config)
    assert world.run(box) == b"in\n"
    world.know(world.box, far)
    world.configure(config + "Host b\n  StrictHostKeyChecking accept-new\n")
    assert "the key of jump host near" in world.refused(box, near).message, (
        "strangers are taken for the box only"
    )


@pytest.mark.slow  # logins through several sshds; by day the refusals below have a way through
def test_who_does_not_answer_or_let_in_is_told_apart(world: World) -> None:
    near, far = world.gates()
    (world.hops[1].folder / "authorized_keys").write_text("")
    with pytest.raises(LoginRefused, match="a host on the way"):
        world.run(world.behind(near, far))
    gone = replace(near, port=free_port())
    for spec in (world.behind(gone), world.behind(near, port=free_port())):
        with pytest.raises(Unreachable, match="Connection refused"):
            world.run(spec)


@pytest.mark.slow  # logins through several sshds; by day the refusals below have a way through
def test_a_second_address_of_a_jump_host_is_tried(world: World) -> None:
    near = replace(world.gates()[0], address=("127.0.0.2", "127.0.0.1"))
    assert world.run(world.behind(near)) == b"in\n"
