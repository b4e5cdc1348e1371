"""Our reading of known_hosts against `ssh-keygen -F`: the same lines, markers and keys for every name asked for."""

from __future__ import annotations

import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from remote_train.transport.known_hosts import (
    KnownHostsFile,
    find_entries,
    make_fingerprint,
    match_key,
    read_known_hosts,
)
from tests.sshd import key_bytes, make_key, public_line
from tests.transport.known_hosts_files import QUERIES, make_file

if TYPE_CHECKING:
    from pathlib import Path

Found = set[tuple[int, str, str]]
WORDS = {"CA": "cert-authority", "REVOKED": "revoked"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("keys")
    return [
        make_key(folder / f"{kind}{number}", kind)
        for kind in ("ed25519", "ecdsa", "rsa")
        for number in (0, 1)
    ]


def ask_keygen(path: Path, name: str) -> Found:
    """What ssh-keygen finds: number of the line, marker, and the key's fingerprint."""
    argv = ["ssh-keygen", "-l", "-F", name, "-f", str(path)]
    lines = (
        subprocess.run(argv, capture_output=True, check=False).stdout.decode(errors="replace").splitlines()
    )
    found = set()
    for head, body in zip(lines[::2], lines[1::2], strict=True):
        number, _, marker = head.removeprefix(f"# Host {name} found: line ").partition(" ")
        fingerprint = next(word for word in body.split() if word.startswith("SHA256:"))
        found.add((int(number), WORDS.get(marker.strip(), ""), fingerprint))
    return found


def ask_us(path: Path, name: str) -> Found:
    """What we find."""
    entries, _ = find_entries(read_known_hosts([path]), [name])
    return {(int(e.where.rpartition(":")[2]), e.marker, make_fingerprint(e.key)) for e in entries}


def show(path: Path, differences: Found) -> str:
    lines = path.read_bytes().split(b"\n")
    return "\n".join(f"{each}: {lines[each[0] - 1]!r}" for each in sorted(differences))


def compare(folder: Path, keys: list[Path], files: range, queries: int) -> None:
    """Compare the answers about some names for each file."""
    lines = [public_line(key) for key in keys]
    folder.mkdir(exist_ok=True)

    def try_one(seed: int) -> int:
        chance = random.Random(seed)
        path = folder / str(seed)
        path.write_text(make_file(chance, lines), newline="")
        total = 0
        for name in chance.sample(QUERIES, queries):
            theirs, ours = ask_keygen(path, name), ask_us(path, name)
            assert ours == theirs, f"seed {seed}, {name}: {show(path, ours ^ theirs)}"
            total += len(ours)
        path.unlink()
        return total

    with ThreadPoolExecutor(4) as pool:
        found = sum(pool.map(try_one, files))
    print(f"{len(files)} files, {len(files) * queries} questions, {found} lines found")
    assert found > len(files), "files in which nothing is found test nothing"


def test_60_files_are_read_as_ssh_keygen_reads_them(tmp_path: Path, keys: list[Path]) -> None:
    start = random.randrange(10**9)
    compare(tmp_path / "files", keys, range(start, start + 60), 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_10000_files_are_read_as_ssh_keygen_reads_them(tmp_path: Path, keys: list[Path]) -> None:
    compare(tmp_path / "files", keys, range(10_000), 3)


def test_several_files_are_one_and_a_revoked_key_is_revoked_in_any(keys: list[Path]) -> None:
    """No oracle judges over files; ssh's own rule is: the first match wins, but for revocation (hostfile.c)."""
    lines = [public_line(key) for key in keys]
    for seed in range(300):
        chance = random.Random(seed)
        texts = [make_file(chance, lines) for _ in range(3)]
        files = [KnownHostsFile(str(number), text) for number, text in enumerate(texts)]
        for key, name in ((chance.choice(keys), chance.choice(QUERIES)) for _ in range(3)):
            kind, blob = public_line(key).split()[0], key_bytes(key)
            one_by_one = {match_key([file], [name], kind, blob).kind for file in files}
            order = ("revoked", "match", "changed", "unknown")
            expected = next(each for each in order if each in one_by_one)
            assert match_key(files, [name], kind, blob).kind == expected, f"seed {seed}"
