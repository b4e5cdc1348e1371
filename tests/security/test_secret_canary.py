"""A canary for a secret, looked for in every command line, file, package, record, traceback and terminal of whole runs."""

from __future__ import annotations

import base64
import contextlib
import os
import resource
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.e2e.machines import PYTHON, Box, Laptop, read_until, write_project
from tests.host.account_kit import Started

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.account_kit import Account

CANARY = "canary-4e1f/+9b27'c8d0"
FORMS = (CANARY.encode(), base64.b64encode(CANARY.encode())[:-4], b"canary-4e1f%2F")
TRAIN = """
import os, pathlib, sys, time
assert len(os.environ["TOKEN_OF_MINE"]) == int(sys.argv[1]), "it is not there"
pathlib.Path("out").mkdir(exist_ok=True)
pathlib.Path("out/ckpt.pt").write_bytes(b"step one")
if sys.argv[-1] == "--init_from=resume":
    print("going on", flush=True)
    time.sleep(600)
raise RuntimeError("the training fails here")
"""
PROJECT = 'resume_args = ["--init_from=resume"]\ncheckpoints = ["out/*.pt"]\n'


class Sampler:
    """Reads the command lines of all processes, and the environments of those of one home, again and again."""

    def __init__(self, home: Path) -> None:
        self._home = f"HOME={home}".encode()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go)
        self.rounds = 0
        self.commands: set[bytes] = set()
        self.knowing: set[tuple[bytes, bool]] = set()
        """Programs of that home with the canary in their environment, and whether they carry a run's cookie."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _go(self) -> None:
        while not self._over.wait(0.01):
            self.rounds += 1
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    with contextlib.suppress(OSError):
                        self._look(entry)

    def _look(self, entry: Path) -> None:
        command = (entry / "cmdline").read_bytes()
        self.commands.add(command)
        environment = (entry / "environ").read_bytes()
        if self._home in environment.split(b"\0") and CANARY.encode() in environment:
            self.knowing.add((command, b"REMOTE_TRAIN_COOKIE=" in environment))


def find_canary(*roots: Path) -> Iterator[tuple[str, str]]:
    """Yield each file that holds the canary, or is named by it, and the name of the form."""
    for path in (path for root in roots for path in (root, *root.rglob("*"))):
        texts = [str(path).encode()]
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink():
                texts.append(path.read_bytes())
        for form in FORMS:
            if any(form in text for text in texts):
                yield str(path), form.decode()


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(f'{{"token": "{CANARY}"}}')
    (tmp_path / "b").write_bytes(base64.b64encode(CANARY.encode()))
    assert len(list(find_canary(tmp_path))) == 2


@pytest.mark.sshd
@pytest.mark.slow
def test_the_canary_is_nowhere_over_a_whole_life(
    tmp_path: Path, laptop: Laptop, box: Box, project: Path
) -> None:
    """A plan, a run that fails, tracebacks of our own, a resume that is stopped, and what commands say of it."""
    write_project(project, {"train.py": TRAIN, "remote-train.toml": PROJECT}, git=True)
    mine = {"TOKEN_OF_MINE": CANARY}
    said: list[bytes] = []

    def type_it(code: int, *args: str) -> bytes:
        done = laptop.type(project, *args, env=mine)
        assert done.code == code, (args, done)
        said.extend((done.out, done.err.encode()))
        return done.out

    with Sampler(box.home) as sampler:
        ours = ("run", "--secret", "TOKEN_OF_MINE", "train.py", str(len(CANARY)))
        type_it(0, "run", "--secret", "TOKEN_OF_MINE", "--dry-run", "--json", *ours[-2:])
        type_it(0, "run", "--secret", "TOKEN_OF_MINE", "--dry-run", *ours[-2:])
        type_it(1, "run", "--json", *ours[1:])
        type_it(
            1, "--debug", "run", "--host", "box", *ours[1:]
        )  # a traceback of ours, of an error with a next step
        type_it(1, "--debug", *ours)
        laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe(state_dir=repr("/proc/1/no"))}')
        type_it(1, "--debug", *ours)
        laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe()}')
        going = laptop.popen(project, "resume", env=mine)
        read_until(going.stdout, b"going on")
        type_it(0, "stop", "--grace", "1")
        out, err = going.communicate(timeout=60)
        said.extend((out, err))
        for command in ("show", "ps", "metrics", "logs", "pull", "explain"):
            done = laptop.type(project, command, env=mine)
            said.extend((done.out, done.err.encode()))
        done = laptop.type(project, "show", "--json", env=mine)
        said.append(done.out)

    assert sampler.rounds > 100
    check_nowhere(sampler, said, tmp_path)


def check_nowhere(sampler: Sampler, said: list[bytes], place: Path) -> None:
    """Of all that was seen the canary stands in the environment of the training, and nowhere else."""
    assert any(b"remote-train" in command for command in sampler.commands)
    assert [c for c in sampler.commands if any(form in c for form in FORMS)] == []
    assert [words for words in said if any(form in words for form in FORMS)] == []
    assert list(find_canary(place)) == []
    assert sampler.knowing
    assert all(cookie and b"train.py" in command for command, cookie in sampler.knowing), sampler.knowing


@pytest.mark.sshd
def test_the_canary_is_nowhere_in_a_run_that_fails(
    tmp_path: Path, laptop: Laptop, box: Box, project: Path
) -> None:
    write_project(project, {"train.py": TRAIN, "remote-train.toml": PROJECT})
    with Sampler(box.home) as sampler:
        args = ("--debug", "run", "--secret", "TOKEN_OF_MINE", "train.py", str(len(CANARY)))
        done = laptop.type(project, *args, env={"TOKEN_OF_MINE": CANARY})
        assert done.code == 1, done
        again = laptop.type(project, "resume").expect(2)
    assert "export TOKEN_OF_MINE=" in again.err
    assert "the training fails here" in done.err + done.out.decode()
    check_nowhere(sampler, [done.out, done.err.encode()], tmp_path)


def read_core_limit(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line for line in lines if line.startswith("Max core file size")).split()[4:6]


def test_it_is_in_the_trainings_environment_and_our_processes_leave_no_core(
    account: Account, request: pytest.FixtureRequest
) -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_CORE, before))
    script = "import os, time; print('has', os.environ['TOKEN_OF_MINE'] == __import__('sys').argv[1][::-1], flush=True); time.sleep(600)"
    started = account.start(script, CANARY[::-1], secrets={"TOKEN_OF_MINE": CANARY})
    assert started.says(b"has") == b"True"
    record = started.record
    assert record["secrets"] == ["TOKEN_OF_MINE"]
    assert CANARY.encode() in Path(f"/proc/{record['child']}/environ").read_bytes()
    assert list(find_canary(account.root)) == []
    if before[1] == 0:
        pytest.skip("no process here may leave a core file: the hard limit is 0")
    # Our processes have it in their memory: a core file would be a copy of that. The training's own is its user's.
    soft, hard = read_core_limit(record["pid"])
    assert (soft, hard) == ("0", read_core_limit(os.getpid())[1])
    assert read_core_limit(record["child"]) == read_core_limit(os.getpid())


def test_a_later_run_of_the_same_agent_may_leave_a_core(
    account: Account, request: pytest.FixtureRequest
) -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    if before[1] == 0:
        pytest.skip("no process here may leave a core file: the hard limit is 0")
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_CORE, before))
    session = account.connect()
    script = "import resource; print('limit', *resource.getrlimit(resource.RLIMIT_CORE), flush=True)"
    package = account.ship(session, {"train.py": script})
    for run, secrets in (("with", {"TOKEN_OF_MINE": CANARY}), ("without", {})):
        session.request("start", **account.message(package, run=run, secrets=secrets))
        assert Started(account, run).says(b"limit").decode() == f"{before[1]} {before[1]}"


def test_the_probe_of_a_peak_does_not_get_it(account: Account) -> None:
    python, seen = account.home / "python", account.home / "seen"
    python.write_text(f'#!/bin/sh\nenv > "{seen}.$$"\ncase "$1" in -c) exit 1;; esac\nexec "{PYTHON}" "$@"\n')
    python.chmod(0o700)
    measure = {"device": "cpu", "name": "a CPU", "threads": 1, "torch": "2.0"}
    changes: dict[str, Any] = {
        "python": str(python),
        "measure": measure,
        "secrets": {"TOKEN_OF_MINE": CANARY},
    }
    assert account.start("pass", **changes).end()["code"] == 0
    environments = sorted(path.read_text() for path in account.home.glob("seen.*"))
    assert len(environments) == 2
    assert sum(CANARY in text for text in environments) == 1
    assert all("TOKEN_OF_MINE" not in text for text in environments if "REMOTE_TRAIN_COOKIE" not in text)


@pytest.mark.parametrize(
    "secrets",
    [{"A": "a\0b"}, {"A=B": CANARY}, {"": CANARY}, {"A": [CANARY]}, {"A": {CANARY: 1}}, [CANARY], CANARY],
)
def test_secrets_that_are_none_are_refused_without_their_value(account: Account, secrets: object) -> None:
    session = account.connect()
    package = account.ship(session, {"train.py": "pass"})
    with pytest.raises(Exception, match=r"malformed request: .*secret") as caught:
        session.request("start", **account.message(package, "train.py", secrets=secrets))
    assert CANARY not in str(caught.value)
    assert list(find_canary(account.root)) == []
