"""hosts add, trust, remove, import and list, typed on a laptop against a real sshd."""

from __future__ import annotations

import sys
import tomllib
from typing import TYPE_CHECKING

import pytest

from remote_train.transport.known_hosts import make_fingerprint
from tests.e2e.machines import PYTHON, Box, Laptop, kill_leftovers, known_line, make_laptop, write_project
from tests.e2e.terminal import open_terminal
from tests.sshd import USER, key_bytes, make_key, public_line, running_sshd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.sshd


class Desk:
    """A laptop that knows nobody, and a host whose training Python is a made one: no torch has to be imported."""

    def __init__(self, laptop: Laptop, box: Box, project: Path, python: Path) -> None:
        self.laptop = laptop
        self.box = box
        self.project = project
        self.where = f"{USER}@127.0.0.1:{box.sshd.port}"
        key = f"--identity-file={box.sshd.user_key}"
        self.add = ("hosts", "add", "b", self.where, key, "--device=cpu", f"--python={python}")

    @property
    def fingerprint(self) -> str:
        return make_fingerprint(key_bytes(self.box.sshd.host_keys[0]))

    @property
    def known(self) -> str:
        return (self.laptop.home / ".ssh" / "known_hosts").read_text()

    @property
    def hosts(self) -> dict[str, object]:
        return tomllib.loads(self.laptop.hosts_file.read_text())

    def logins(self) -> int:
        return self.box.sshd.read_log().count("userauth-request")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    folder = tmp_path_factory.mktemp("box")
    home = folder / "home"  # hosts.toml names no Python in a folder with a space
    home.mkdir()
    with running_sshd(folder / "sshd", [f"SetEnv HOME={home}"]) as sshd:
        yield Box(sshd, home)
        kill_leftovers(Box(sshd, home).root)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that finds a torch which is only a version."""
    folder = tmp_path_factory.mktemp("python")
    site = folder / f"lib/python3.{sys.version_info[1]}/site-packages/torch"
    site.mkdir(parents=True)
    (site / "__init__.py").touch()
    (site / "version.py").write_text("__version__ = '2.6.0+cpu'\ncuda = None\n")
    (folder / "pyvenv.cfg").write_text(f"home = {PYTHON.resolve().parent}\n")
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(PYTHON.resolve())
    return folder / "bin" / "python"


@pytest.fixture
def desk(running: Box, python: Path, tmp_path: Path) -> Desk:
    laptop = make_laptop(tmp_path / "laptop")
    return Desk(laptop, running, write_project(tmp_path / "project", {"train.py": "pass"}), python)


def test_a_host_is_added_once_its_key_is_stated_and_is_then_known_and_pinned(desk: Desk) -> None:
    logins = desk.logins()
    refused = desk.laptop.type(desk.project, *desk.add).expect(11)
    assert desk.logins() == logins, "nothing may be sent to a host that nobody knows"
    assert not desk.laptop.hosts_file.exists()
    command = f"--host-key {desk.fingerprint}"
    assert command in refused.out.decode()
    done = desk.laptop.ok(desk.project, *desk.add, *command.split(), "--json")
    assert done.event("check")["verdict"].startswith("ready")
    assert done.event("added")["default"] is True
    host = {"address": ["127.0.0.1"], "user": USER, "port": desk.box.sshd.port, "device": "cpu"}
    assert desk.hosts["default"] == ["b"]
    assert host.items() <= desk.hosts["hosts"]["b"].items()  # type: ignore[index]
    assert desk.hosts["hosts"]["b"]["host_key"] == desk.fingerprint  # type: ignore[index]
    taken = desk.laptop.type(desk.project, *desk.add).expect(2)
    assert "--replace" in taken.err


def test_a_person_is_asked_once_and_known_hosts_remembers_it(desk: Desk) -> None:
    with open_terminal(desk.laptop, desk.project, *desk.add) as terminal:
        terminal.wait_for("Trust it")
        assert desk.fingerprint in terminal.text
        assert not desk.laptop.hosts_file.exists()
        terminal.key(b"y\r")
        assert terminal.end(60) == 0, terminal.text
        assert "and is the default" in terminal.text
    assert known_line(desk.box.sshd) in desk.known
    assert "host_key" not in desk.hosts["hosts"]["b"]  # type: ignore[index]


def test_a_host_that_is_unfit_or_not_there_is_not_written(desk: Desk) -> None:
    desk.laptop.trust(known_line(desk.box.sshd))
    done = desk.laptop.type(desk.project, *desk.add[:-1], "--python=/nowhere/python").expect(13)
    assert "/nowhere/python" in done.out.decode()
    assert "--no-check" in done.err
    assert "hosts add NAME" in desk.laptop.type(desk.project, "hosts", "check").expect(2).err
    gone = ("hosts", "add", "gone", "127.0.0.1:1")
    assert "unreachable" in desk.laptop.type(desk.project, *gone).expect(10).out.decode()
    assert not desk.laptop.hosts_file.exists()
    desk.laptop.ok(desk.project, *gone, "--no-check")
    assert desk.hosts["hosts"] == {"gone": {"address": ["127.0.0.1"], "port": 1}}


def test_a_python_with_torch_is_found_where_the_host_s_own_has_none(desk: Desk, python: Path) -> None:
    desk.laptop.trust(known_line(desk.box.sshd))
    place = desk.box.home / "miniconda3"
    place.symlink_to(python.parent.parent)
    before = desk.box.sshd.read_log().count("Accepted publickey")
    try:
        done = desk.laptop.type(desk.project, *desk.add[:-1], "--json")
    finally:
        place.unlink()
    assert desk.box.sshd.read_log().count("Accepted publickey") == before + 1, "a code is good for one login"
    found = done.event("check")["facts"]["python"]
    if found["torch"] and not found["path"].startswith(str(desk.box.home)):
        pytest.skip("this machine's own python3 has torch")
    assert desk.hosts["hosts"]["b"]["python"] == f"{place}/bin/python"  # type: ignore[index]
    done.expect(0)


@pytest.mark.parametrize(
    "argv",
    [
        (".b", "h.example"),
        ("local", "h.example"),
        ("b",),
        ("b", "a b"),
        ("b", "u@h.example", "v@g.example"),
        ("b", "h.example:1", "g.example:2"),
        ("b", "h.example", "--device=tpu"),
        ("b", "h.example", "--host-key=abc"),
        ("b", "h.example", "--transport=smoke"),
    ],
)
def test_what_makes_no_host_is_exit_2(argv: tuple[str, ...], tmp_path: Path) -> None:
    laptop = make_laptop(tmp_path / "laptop")
    laptop.type(tmp_path, "hosts", "add", "--no-check", "--", *argv[:1], *argv[1:]) if argv[
        0
    ] == "-b" else None
    laptop.type(tmp_path, "hosts", "add", "--no-check", *argv).expect(2)
    assert not laptop.hosts_file.exists()


def test_a_changed_key_takes_its_new_fingerprint_and_no_less(desk: Desk, tmp_path: Path) -> None:
    old = make_key(tmp_path / "old")
    desk.laptop.trust(f"[127.0.0.1]:{desk.box.sshd.port} {public_line(old)}")
    before, logins = desk.known, desk.logins()
    refused = desk.laptop.type(desk.project, "hosts", "trust", desk.where).expect(11)
    for words in (desk.fingerprint, make_fingerprint(key_bytes(old)), "known_hosts:1", "--key SHA256:"):
        assert words in refused.err
    wrong = make_fingerprint(key_bytes(old))
    desk.laptop.type(desk.project, "hosts", "trust", desk.where, "--key", wrong).expect(11)
    for answer, code in ((b"y\r", 11), (b"\r", 11), (desk.fingerprint.encode() + b"\r", 0)):
        assert desk.known == before
        with open_terminal(desk.laptop, desk.project, "hosts", "trust", desk.where) as terminal:
            terminal.wait_for("type the new fingerprint")
            terminal.key(answer)
            assert terminal.end() == code, terminal.text
    assert desk.known == known_line(desk.box.sshd) + "\n"
    assert desk.logins() == logins
    assert "already" in desk.laptop.ok(desk.project, "hosts", "trust", desk.where).err


def test_a_revoked_key_is_never_taken(desk: Desk) -> None:
    desk.laptop.trust(f"@revoked * {public_line(desk.box.sshd.host_keys[0])}")
    done = desk.laptop.type(desk.project, "hosts", "trust", desk.where, "--key", desk.fingerprint).expect(11)
    assert "known_hosts:1" in done.err
    assert "revoked" in done.err


def test_a_pin_is_replaced_where_it_stands(desk: Desk, tmp_path: Path) -> None:
    old = make_fingerprint(key_bytes(make_key(tmp_path / "old")))
    pinned = desk.box.describe(host_key=f'"{old}"')
    desk.laptop.write_hosts(f"# mine\n[hosts.b]\n{pinned}")
    before = desk.laptop.hosts_file.read_text()
    refused = desk.laptop.type(desk.project, "hosts", "check", "b").expect(11)
    assert "remote-train hosts trust b" in refused.out.decode()
    assert old in desk.laptop.type(desk.project, "hosts", "trust", "b").expect(11).err
    done = desk.laptop.ok(desk.project, "hosts", "trust", "b", "--key", desk.fingerprint, "--json")
    assert done.event("trusted")["was"] == old
    assert desk.laptop.hosts_file.read_text() == before.replace(old, desk.fingerprint)


def test_a_host_is_removed_and_its_runs_are_named(desk: Desk) -> None:
    desk.laptop.trust(known_line(desk.box.sshd))
    desk.laptop.write_hosts(f'default = ["b", "c"]\n[hosts.b]\n{desk.box.describe()}[hosts.c]\n')
    known = desk.known
    plain = ("run", "-d", "--host=b", "--launcher=python", "--name=r1", "--no-meter", "train.py")
    desk.laptop.ok(desk.project, *plain)
    with open_terminal(desk.laptop, desk.project, "hosts", "remove", "b") as terminal:
        terminal.wait_for("Remove b from")
        assert "r1" in terminal.text
        terminal.key(b"n\r")
        assert terminal.end() == 0
    assert "b" in desk.hosts["hosts"]  # type: ignore[operator]
    row = desk.laptop.ok(desk.project, "hosts", "remove", "b", "--json").event("removed")
    assert [each["run"] for each in row["runs"]] == ["r1"]
    assert desk.hosts == {"default": ["c"], "hosts": {"c": {}}}
    assert desk.known == known
    desk.laptop.type(desk.project, "hosts", "remove", "b").expect(2)
    desk.laptop.write_hosts('[hosts.gate]\n[hosts.c]\nproxy_jump = "me@x, gate"\n')
    refused = desk.laptop.type(desk.project, "hosts", "remove", "gate").expect(2)
    assert "gate is the jump host of c" in refused.err
    assert desk.hosts["hosts"].keys() == {"gate", "c"}  # type: ignore[attr-defined]


SSH_CONFIG = """
Host gh
  HostName GitHub.com
Host a b.c
  HostName 10.0.0.1
  Port 2222
Host jump*
  User me
Host mine
  User git
Host odd
  GSSAPIAuthentication yes
  SendEnv LANG
Host sl/ash local
Host *
Match all
Include more
"""
BEHIND = "Host included\n  ProxyJump a,me@h.example\n"


def test_the_hosts_of_ssh_config_are_imported_in_one_command(tmp_path: Path) -> None:
    laptop = make_laptop(tmp_path / "laptop")
    ssh = laptop.home / ".ssh"
    (ssh / "config").write_text(SSH_CONFIG)
    (ssh / "more").write_text(BEHIND)
    laptop.write_hosts('# mine\n[hosts.a]\nuser = "me"\n')
    before = laptop.hosts_file.read_text()
    dry = laptop.ok(tmp_path, "hosts", "import", "--dry-run", "--json").events
    assert laptop.hosts_file.read_text() == before
    rows = laptop.ok(tmp_path, "hosts", "import", "--json").events
    assert rows == dry
    done = {row["host"]: row["done"] for row in rows}
    assert {
        name: done[name] for name in ("gh", "a", "b.c", "jump*", "mine", "sl/ash", "local", "included")
    } == {
        "gh": "left out",
        "a": "kept",
        "b.c": "added",
        "jump*": "left out",
        "mine": "left out",
        "sl/ash": "left out",
        "local": "left out",
        "included": "added",
    }
    assert all(row["why"] for row in rows)
    text = laptop.hosts_file.read_text()
    assert text.startswith(before)
    assert "default" not in tomllib.loads(text)
    listed = {row["name"]: row for row in laptop.ok(tmp_path, "hosts", "list", "--json").events}
    assert listed["b.c"]["address"] == ["10.0.0.1"]
    assert listed["b.c"]["port"] == 2222
    assert listed["included"]["jump"] == ["a", "me@h.example"], "ssh_config's count too"
    again = laptop.ok(tmp_path, "hosts", "import", "--json").events
    assert {row["host"]: row["done"] for row in again}["b.c"] == "kept"
    assert not [row for row in again if row["done"] == "added"]
    assert laptop.hosts_file.read_text() == text


def test_the_key_of_a_host_behind_a_jump_host_is_trusted_through_it(desk: Desk, tmp_path: Path) -> None:
    with running_sshd(tmp_path / "jump") as jump:
        (jump.folder / "authorized_keys").write_text(public_line(desk.box.sshd.user_key) + "\n")
        key = f'identity_file = "{desk.box.sshd.user_key}"\n'
        gate = f'[hosts.j]\naddress = ["127.0.0.1"]\nport = {jump.port}\n{key}'
        desk.laptop.write_hosts(f'{gate}[hosts.b]\nproxy_jump = "j"\n{desk.box.describe()}')
        refused = desk.laptop.type(desk.project, "hosts", "trust", "b").expect(11)
        assert "remote-train hosts trust j" in refused.err, "the nearest comes first"
        jumping = make_fingerprint(key_bytes(jump.host_keys[0]))
        added = desk.laptop.type(desk.project, "hosts", "add", "n", desk.where, "--proxy-jump=j").expect(11)
        assert "remote-train hosts trust j" in added.out.decode()
        assert "--host-key" not in added.out.decode(), "the key is the jump host's"
        desk.laptop.ok(desk.project, "hosts", "trust", "j", "--key", jumping)
        logins = desk.logins()
        refused = desk.laptop.type(desk.project, "hosts", "trust", "b").expect(11)
        assert f"remote-train hosts trust b --key {desk.fingerprint}" in refused.err
        desk.laptop.ok(desk.project, "hosts", "trust", "b", "--key", desk.fingerprint)
        assert desk.logins() == logins
    assert known_line(desk.box.sshd) in desk.known


def test_a_key_is_looked_at_on_the_way_that_ssh_config_describes(desk: Desk, tmp_path: Path) -> None:
    config = desk.laptop.home / ".ssh" / "config"
    before = config.read_text()
    other = tmp_path / "other.toml"
    other.write_text(f"[hosts.six]\nport = {desk.box.sshd.port}\naddress = ['localhost']\n[hosts.b]\n")
    with running_sshd(tmp_path / "jump") as jump:
        (jump.folder / "authorized_keys").write_text(public_line(desk.box.sshd.user_key) + "\n")
        known = f"[127.0.0.1]:{jump.port} {public_line(jump.host_keys[0])}"
        config.write_text(
            f"Host localhost\n  AddressFamily inet6\nHost gate\n  HostName 127.0.0.1\n  Port {jump.port}\n"
            f"  KnownHostsCommand /bin/echo {known}\n  IdentityFile {desk.box.sshd.user_key}\n"
            f"Host b\n  HostName 127.0.0.1\n  Port {desk.box.sshd.port}\n  ProxyJump gate\n{before}"
        )
        desk.laptop.type(desk.project, "hosts", "trust", "six", "--hosts-file", str(other)).expect(10)
        trust = ("hosts", "trust", "b", "--hosts-file", str(other))
        refused = desk.laptop.type(desk.project, *trust).expect(11)
        command = f"remote-train hosts trust --hosts-file {other} b --key {desk.fingerprint}"
        assert command in refused.err, "typed as it stands"
        desk.laptop.ok(desk.project, *command.split()[1:])
    assert known_line(desk.box.sshd) in desk.known
