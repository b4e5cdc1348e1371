"""Names, files and command lines that make no sense: exit 2 or 20, with what, where and the next step; nothing happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import (
    Box,
    Done,
    Laptop,
    write_project,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.sshd, pytest.mark.timeout(100)]

HELLO = {"train.py": "import sys\nprint('hello from', *sys.argv)\n"}


@pytest.fixture
def hello(project: Path) -> Path:
    return write_project(project, HELLO)


def is_untouched(project: Path, *boxes: Box) -> bool:
    """Tell whether nothing was started, here or there."""
    started = [run for box in boxes for run in (box.root / "runs").glob("*")]
    return not (project / "runs").exists() and not started


def has_next_step(done: Done) -> bool:
    return "\nhint: " in done.err


def test_a_typo_is_never_a_cpu_run(laptop: Laptop, box: Box, hello: Path) -> None:
    done = laptop.type(hello, "run", "--host", "bxo", "train.py").expect(2)

    assert "did you mean 'box'?" in done.err
    assert is_untouched(hello, box)


def test_failover_where_nobody_stays_or_nobody_asked_for_it(laptop: Laptop, box: Box, hello: Path) -> None:
    left = laptop.type(hello, "run", "-d", "--failover", "train.py").expect(2)
    unasked = laptop.type(hello, "run", "--failover-after", "5", "train.py").expect(2)

    assert "logs -f --failover" in " ".join(left.err.split())
    assert "--failover-after" in unasked.err
    assert is_untouched(hello, box)


def test_every_fault_of_hosts_toml_at_once(laptop: Laptop, hello: Path) -> None:
    laptop.write_hosts(
        'default = ["boks"]\n[hosts.box]\nadress = ["1.2.3.4"]\nport = 70000\ndevice = "gpu"\n[hosts.box.env]\n"A B" = "x"\n'
    )

    done = laptop.type(hello, "run", "train.py").expect(2)

    lines = [line for line in done.err.splitlines() if "hosts.toml:" in line]
    assert len(lines) == 5, done.err
    for number, words in ((1, "boks"), (3, "'address'"), (4, "70000"), (5, "gpu"), (7, "A B")):
        assert any(f"hosts.toml:{number}" in line and words in line for line in lines), (number, done.err)


@pytest.mark.parametrize("text", ["[hosts.box\n", "hosts = 3\n", "\0", "[hosts.box]\nuv = 3\n"], ids=range(4))
def test_hosts_toml_that_cannot_be_used(laptop: Laptop, hello: Path, text: str) -> None:
    laptop.write_hosts(text)

    done = laptop.type(hello, "run", "train.py").expect(2)

    assert "hosts.toml" in done.err


def test_hosts_toml_that_others_may_write_is_refused(laptop: Laptop, hello: Path) -> None:
    laptop.hosts_file.chmod(0o666)

    done = laptop.type(hello, "run", "train.py").expect(2)

    assert "chmod" in done.err


def test_a_project_file_may_not_name_hosts(laptop: Laptop, hello: Path) -> None:
    (hello / "remote-train.toml").write_text('scirpt = "train.py"\n[hosts.box]\naddress = ["evil.example"]\n')

    done = laptop.type(hello, "run", "train.py").expect(2)

    assert "remote-train.toml:1" in done.err
    assert "'script'" in done.err
    assert "remote-train.toml:2" in done.err


@pytest.mark.parametrize("option", ["RemoteCommand date"])
def test_an_ssh_option_that_we_do_not_follow_is_named(laptop: Laptop, hello: Path, option: str) -> None:
    config = laptop.home / ".ssh" / "config"
    config.write_text(config.read_text() + f"  {option}\n")

    done = laptop.type(hello, "run", "train.py").expect(2)

    assert option.split(maxsplit=1)[0].lower() in done.err.lower()
    assert has_next_step(done)
    assert not (hello / "runs").exists()


def test_local_and_host_contradict(laptop: Laptop, hello: Path) -> None:
    laptop.type(hello, "run", "--local", "--host", "box", "train.py").expect(2)


@pytest.mark.parametrize(
    "args",
    [
        ["run", "--launcher", "slurm", "train.py"],
        ["run", "--nproc-per-node", "0", "train.py"],
        ["run", "--nosuch", "train.py"],
        ["run", "--env", "1A=2", "train.py"],
        ["run", "--secret", "NOT_SET_ANYWHERE", "train.py"],
        ["run", "--name", "Not A Name", "train.py"],
        ["run"],
        ["logs", "nosuchrun"],
        ["logs"],
        ["stop", "box:nosuchrun"],
        ["pull", "--limit", "fast"],
        ["pull", "--keep-last", "0"],
        ["pull", "--keep-last", "2", "--all"],
        ["nosuchcommand"],
    ],
    ids=" ".join,
)
def test_a_command_line_that_makes_no_sense(laptop: Laptop, box: Box, hello: Path, args: list[str]) -> None:
    done = laptop.type(hello, *args).expect(2)

    assert done.err.strip()
    assert is_untouched(hello, box)


def test_a_script_that_is_not_there(laptop: Laptop, box: Box, hello: Path) -> None:
    done = laptop.type(hello, "run", "tarin.py").expect(20)

    assert "tarin.py is not among the files that travel, did you mean 'train.py'?" in done.err
    assert is_untouched(hello, box)
