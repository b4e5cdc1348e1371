"""known_hosts as we read it; test_known_hosts_oracle compares it with ssh-keygen -F."""

from __future__ import annotations

import base64
import stat
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.transport.known_hosts import (
    KnownHostsFile,
    Verdict,
    find_entries,
    known_key_types,
    make_fingerprint,
    make_host_names,
    match_hosts,
    match_key,
    match_pattern,
    match_pin,
    read_known_hosts,
    write_known_host,
)
from tests.sshd import make_key, public_line

if TYPE_CHECKING:
    from pathlib import Path


def make_blob(kind: str, seed: int) -> bytes:
    """A key as ssh-keygen accepts it: type, then 32 bytes (only ed25519 is checked further by nobody here)."""
    body = bytes([seed]) * 32
    return struct.pack(">I", len(kind)) + kind.encode() + struct.pack(">I", len(body)) + body


ED = "ssh-ed25519"
KEYS = [make_blob(ED, seed) for seed in range(3)]
LINE = f"{ED} {base64.b64encode(KEYS[0]).decode()}"
BOX = ("box",)


def one(text: str, names: tuple[str, ...] = BOX, key: bytes = KEYS[0], kind: str = ED) -> Verdict:
    return match_key([KnownHostsFile("kh", text)], names, kind, key)


def run_keygen(path: Path, name: str) -> set[int]:
    """The numbers of the lines that ssh-keygen finds for a name."""
    done = subprocess.run(
        ["ssh-keygen", "-F", name, "-f", str(path)], capture_output=True, text=True, check=False
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("# Host")]
    return {int(line.split(" line ")[1].split()[0]) for line in found}


@given(pattern=st.text("ab*?", max_size=12), name=st.text("ab", max_size=8))
def test_wildcards_match_like_a_plain_recursive_matcher(pattern: str, name: str) -> None:
    def slow(p: str, n: str) -> bool:
        if not p:
            return not n
        if p[0] == "*":
            return slow(p[1:], n) or (bool(n) and slow(p, n[1:]))
        return bool(n) and p[0] in {"?", n[0]} and slow(p[1:], n[1:])

    assert match_pattern(pattern, name) == slow(pattern, name)


@given(st.binary(max_size=400))
def test_no_bytes_make_it_fail(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    find_entries([KnownHostsFile("kh", text)], ["box"])
    match_hosts(text, "box")


@pytest.mark.parametrize(
    ("text", "kind", "where"),
    [
        (f"box {LINE}", "match", "kh:1"),
        (f"# c\n\nBOX {LINE}", "match", "kh:3"),
        (f"box {ED} {base64.b64encode(KEYS[1]).decode()}", "changed", "kh:1"),
        (f"box {ED} {base64.b64encode(KEYS[1]).decode()}\nb* {LINE}", "match", "kh:2"),
        (f"@revoked * {LINE}\nbox {LINE}", "revoked", "kh:1"),
        (f"@revoked box {ED} {base64.b64encode(KEYS[1]).decode()}\nbox {LINE}", "match", "kh:2"),
        (f"@revoked\tbox {LINE}\nbox {LINE}", "revoked", "kh:1"),
        (f"@revoked other {LINE}\nbox {LINE}", "match", "kh:2"),
        (f"@cert-authority * {LINE}", "unknown", "kh:1"),
        (f"other {LINE}", "unknown", ""),
        (f"*,!box {LINE}", "unknown", ""),
        ("", "unknown", ""),
        (f"box ssh-rsa {base64.b64encode(make_blob('ssh-rsa', 1)).decode()}", "changed", "kh:1"),
        (f"|1|broken {LINE}\n|2|a|b {LINE}\n|1|a|b {LINE}", "unknown", ""),
    ],
)
def test_verdicts(text: str, kind: str, where: str) -> None:
    verdict = one(text)
    assert (verdict.kind, verdict.where) == (kind, where)


def test_a_host_known_by_an_authority_only_says_so() -> None:
    assert one(f"@cert-authority * {LINE}").authority_only
    assert not one("").authority_only


def test_a_key_known_under_one_name_of_the_host_is_good_for_all() -> None:
    assert one(f"10.0.0.1 {LINE}", ("box", "10.0.0.1")).kind == "match"


def test_broken_lines_are_named_and_skipped() -> None:
    text = (
        f"@nonsense box {LINE}\nbox {ED} !!!\nbox\nelse {ED} !!!\nbox {LINE}\nbox ssh-rsa {LINE.split()[1]}"
    )
    entries, notices = find_entries([KnownHostsFile("kh", text)], BOX)
    assert [e.where for e in entries] == ["kh:5"]
    assert [n.split(": ")[0] for n in notices] == ["kh:1", "kh:2", "kh:3", "kh:6"]


def test_several_files_and_the_types_they_know() -> None:
    rsa = f"box ssh-rsa {base64.b64encode(make_blob('ssh-rsa', 1)).decode()}"
    files = [KnownHostsFile("a", rsa), KnownHostsFile("b", f"box {LINE}\n@revoked box {LINE}")]
    assert known_key_types(files, BOX) == ("ssh-rsa", ED)
    assert one("", key=KEYS[0]).kind == "unknown"
    assert match_key(files[:1], BOX, ED, KEYS[0]).kind == "changed"


def test_fingerprints_are_those_of_ssh_keygen(tmp_path: Path) -> None:
    key = make_key(tmp_path / "k")
    printed = subprocess.run(
        ["ssh-keygen", "-lf", str(key)], capture_output=True, text=True, check=True
    ).stdout
    made = make_fingerprint(base64.b64decode(public_line(key).split()[1]))
    assert made == printed.split()[1]


def test_a_pin_must_be_the_whole_fingerprint() -> None:
    pin = make_fingerprint(KEYS[0])
    assert match_pin(pin, KEYS[0])
    assert match_pin(f" {pin}= ", KEYS[0])
    assert not match_pin(pin, KEYS[1])
    assert not match_pin(pin[:-1], KEYS[0])
    assert not match_pin("", KEYS[0])
    assert not match_pin("SHA256:é", KEYS[0])


@pytest.mark.parametrize(
    ("addresses", "port", "alias", "expected"),
    [
        (("Box",), 22, None, ("box",)),
        (("10.0.0.1", "Box"), 2222, None, ("[10.0.0.1]:2222", "[box]:2222")),
        (("10.0.0.1",), 2222, "GPU", ("gpu",)),
        (("::1",), 22, None, ("::1",)),
    ],
)
def test_names_are_those_that_ssh_looks_up(
    addresses: tuple[str, ...], port: int, alias: str | None, expected: tuple[str, ...]
) -> None:
    assert make_host_names(addresses, port, alias) == expected


def test_reading_takes_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"box \xff\n")
    (tmp_path / "dir").mkdir()
    files = read_known_hosts([tmp_path / "a", tmp_path / "missing", tmp_path / "dir"])
    assert [file.path for file in files] == [str(tmp_path / "a"), str(tmp_path / "dir")]
    assert files[1].problem
    assert find_entries(files, BOX)[1][-1].startswith(str(tmp_path / "dir"))


def test_a_written_key_is_found_by_us_and_by_ssh_keygen(tmp_path: Path) -> None:
    path = tmp_path / "new" / "known_hosts"
    write_known_host(path, "[box]:2222", ED, KEYS[0])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text(path.read_text().rstrip("\n"))  # a last line without its end must not be spoiled
    write_known_host(path, "other", ED, KEYS[1])
    write_known_host(path, "[hidden]:2222", ED, KEYS[0], hashed=True)
    assert "hidden" not in path.read_text()
    assert run_keygen(path, "[hidden]:2222") == {3}
    assert run_keygen(path, "[box]:2222") == {1}
    assert match_key(read_known_hosts([path]), ["other"], ED, KEYS[1]).where == f"{path}:2"


@pytest.mark.parametrize("name", ["a b", "a\nb", "a,b", "*", "!a", "@revoked", "#", "|1|a|b", ""])
def test_a_name_that_would_mean_more_is_not_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot stand"):
        write_known_host(tmp_path / "kh", name, ED, KEYS[0])
    assert not (tmp_path / "kh").exists()
