"""A host's key is replaced in known_hosts: as `ssh-keygen -R` does, but nobody else's lines are harmed."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from remote_train.errors import ConfigError
from remote_train.transport.known_hosts import match_key, read_known_hosts
from remote_train.transport.known_hosts_edit import drop_names, replace_known_host
from tests.sshd import key_bytes, make_key, public_line

ED = "ssh-ed25519"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("keys")
    return [make_key(folder / f"k{number}") for number in range(2)]


def test_only_the_name_leaves_a_line_of_several(keys: list[Path]) -> None:
    line = public_line(keys[0])
    text = f"# c\nbox,10.0.0.1 {line} me\nbox {line}\n@revoked box {line}\nother {line}\nBox  {line}\n"
    assert drop_names(text, ["box"]).text == f"# c\n10.0.0.1 {line} me\n@revoked box {line}\nother {line}\n"
    assert drop_names(text, ["box"], keep=key_bytes(keys[0])).text == text


@pytest.mark.parametrize("hosts", ["b*", "box,b*", "*", "b?x,!bay"])
def test_a_line_with_wildcards_stays_and_is_named(hosts: str, keys: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"\n{hosts} {public_line(keys[0])}\n")
    with pytest.raises(ConfigError, match=f"{path}:2"):
        replace_known_host([path], ["box"], ED, key_bytes(keys[1]))
    assert path.read_text() == f"\n{hosts} {public_line(keys[0])}\n"
    assert [each.name for each in tmp_path.iterdir()] == ["known_hosts"]


def test_the_new_key_is_the_only_one_and_the_old_file_is_beside_it(keys: list[Path], tmp_path: Path) -> None:
    first, second, missing = (tmp_path / name for name in ("known_hosts", "known_hosts2", "none"))
    first.write_text(f"[box]:2222 {public_line(keys[0])}\nother {public_line(keys[0])}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(first)], check=True, capture_output=True)
    second.write_text(f"[10.0.0.1]:2222,[box]:2222,x {public_line(keys[0])}\n")
    old = first.read_bytes()
    names = ["[box]:2222", "[10.0.0.1]:2222"]
    assert replace_known_host([first, second, missing], names, ED, key_bytes(keys[1])) == [first, second]
    files = read_known_hosts([first, second])
    assert match_key(files, names, ED, key_bytes(keys[1])).kind == "match"
    assert match_key(files, names, ED, key_bytes(keys[0])).kind == "changed"
    assert match_key(files, ["other"], ED, key_bytes(keys[0])).kind == "match"
    assert second.read_text() == f"x {public_line(keys[0])}\n"
    assert (tmp_path / "known_hosts.old").read_bytes() == old
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    assert not missing.exists()
    assert replace_known_host([first, second], names, ED, key_bytes(keys[1])) == [], "once is enough"


@pytest.mark.parametrize("paths", [[], [Path("/dev/null")]])
def test_a_key_is_not_called_trusted_where_nothing_keeps_it(paths: list[Path], keys: list[Path]) -> None:
    with pytest.raises(ConfigError, match="no key can be remembered") as caught:
        replace_known_host(paths, ["box"], ED, key_bytes(keys[0]))
    assert "host_key" in (caught.value.hint or "")


def test_no_byte_of_other_lines_changes(keys: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    others = b"caf\xe9 x\r\n\t spaced\x00 \xff\n@odd y\n"
    path.write_bytes(others + f"box {public_line(keys[0])}\n".encode())
    replace_known_host([path], ["box"], ED, key_bytes(keys[1]))
    assert path.read_bytes() == others + f"box {public_line(keys[1])}\n".encode()
