"""Environments that uv builds on a host: once for each content, by real uv, without a network; and what of them goes when."""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.config.host_spec import HostSpec
from remote_train.environments import Environment
from remote_train.errors import HostSpace, HostUnfit
from remote_train.host import disk, durable, env_builder, env_garbage, environments, layout, locks
from remote_train.host.recipe_format import check_recipe
from remote_train.host.start import Refusal
from remote_train.preflight import find_unfit
from remote_train.reach import HostLink
from tests.e2e.machines import write_project
from tests.host.account_kit import the_agent, until
from tests.host.tidy_kit import DAY, Ended
from tests.host.uv_kit import LIBRARY, OFFLINE, TORCH, make_program, uv, write_uv_project

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remote_train.session import Session
    from tests.host.account_kit import Account

__all__ = ["uv"]
slow = pytest.mark.slow


@pytest.fixture
def there(account: Account, uv: Path) -> Iterator[Account]:
    """An account that has uv, which waits as long as there is a file `hold`, and says so by one named `held`."""
    place = account.home / ".local" / "bin" / "uv"
    place.parent.mkdir(parents=True)
    home = shlex.quote(str(account.home))
    lines = [
        "#!/bin/sh",
        f'if [ "$1" = sync ] && [ -e {home}/hold ]; then echo $$ > {home}/held.new; mv {home}/held.new {home}/held; fi',
        f'while [ "$1" = sync ] && [ -e {home}/hold ]; do sleep 0.05; done',
        f'exec {shlex.quote(str(uv))} "$@"',
    ]
    place.write_text("\n".join(lines) + "\n")
    place.chmod(0o755)
    yield account
    (account.home / "hold").unlink(missing_ok=True)  # nothing waits on after a test that failed


@pytest.fixture(autouse=True)
def only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other uv is in PATH."""
    kept = [item for item in os.environ["PATH"].split(":") if not (Path(item) / "uv").exists()]
    monkeypatch.setenv("PATH", ":".join(kept))


def make(root: Path, script: str | None = None) -> Environment:
    return Environment(root, True, script, OFFLINE)


def python_says(python: str, code: str) -> str:
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def parts(account: Account) -> list[str]:
    return [path.name for path in (account.root / layout.ENVS).glob(f"*{layout.ENV_PART}")]


def built(account: Account) -> list[str]:
    return env_garbage.list_environments(str(account.root))


def test_a_project_is_built_as_its_lock_says_and_then_reused(
    there: Account, uv: Path, tmp_path: Path
) -> None:
    root = write_uv_project(tmp_path / "project", uv, "torch", "mylib")
    session, said = there.connect(), list[str]()

    python = make(root).build(session, said.append)

    assert (
        python_says(python, "import torch.version, mylib; print(torch.version.__version__, mylib.X)")
        == "2.9.1 5"
    )
    hello = subprocess.run([Path(python).with_name("hello")], check=True, capture_output=True, text=True)
    assert hello.stdout == "5\n", "its programs know where it lies now"
    assert any("+ torch==2.9.1" in line for line in said), said
    assert all(line.startswith("local: ") for line in said)
    assert len(built(there)) == 1
    assert parts(there) == []
    assert [path.name for path in Path(python).parents[2].iterdir()] == [layout.VENV], (
        "sources are not needed any more"
    )
    again: list[str] = []
    assert make(root).build(there.connect(), again.append) == python
    assert again == []
    (root / "lib" / "src" / "mylib" / "__init__.py").write_text("X = 6\n")
    other = make(root).build(session, said.append)
    assert python_says(other, "import mylib; print(mylib.X)") == "6"
    assert len(built(there)) == 2


@slow
def test_a_script_gets_what_its_header_says_whatever_else_changes_in_it(
    there: Account, tmp_path: Path
) -> None:
    root = write_uv_project(tmp_path / "project", None, "mylib")
    header = f'# /// script\n# requires-python = ">=3.8"\n# dependencies = ["torch"]\n# [tool.uv.sources]\n# torch = {{ path = "../{TORCH}" }}\n# ///\n'
    script = root / "sub" / "train.py"
    script.parent.mkdir()
    script.write_text(header + "print(1)\n")
    session = there.connect()

    python = make(root, "sub/train.py").build(session, lambda _line: None)

    assert python_says(python, "import torch.version; print(torch.version.__version__)") == "2.9.1"
    assert python_says(python, "import importlib.util as u; print(u.find_spec('mylib'))") == "None"
    script.write_text(header + "print(2)\n")
    assert make(root, "sub/train.py").build(session, lambda _line: None) == python


@slow
@pytest.mark.parametrize("locked", [False, True])
def test_a_script_gets_the_project_that_it_is_a_file_of(
    there: Account, uv: Path, tmp_path: Path, *, locked: bool
) -> None:
    files = {"pyproject.toml": LIBRARY, "src/mylib/__init__.py": "X = 5\ndef main(): print(X)\n"}
    editable = ", editable = true" if locked else ""
    header = f'# /// script\n# dependencies = ["mylib"]\n# [tool.uv.sources]\n# mylib = {{ path = ".."{editable} }}\n# ///\n'
    root = write_project(tmp_path / "project", {**files, "sub/train.py": header})
    if locked:
        env = {**os.environ, **OFFLINE, "HOME": str(root)}
        lock = [str(uv), "lock", "-q", "--python", sys.executable, "--script", "sub/train.py"]
        subprocess.run(lock, cwd=root, env=env, check=True)

    python = make(root, "sub/train.py").build(there.connect(), lambda _line: None)

    assert (
        python_says(
            python, "import mylib; print(mylib.X, mylib.__file__.startswith(__import__('sys').prefix))"
        )
        == "5 True"
    )


@slow
def test_facts_of_a_host_with_uv_are_remembered_and_torch_is_not_installed_unasked(
    there: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_uv_project(tmp_path / "project", None, "mylib")
    host = HostSpec("box", uv=True, device="cpu", env=OFFLINE)
    session = there.connect()

    facts = HostLink(host, the_agent(), None, ["python3"]).for_project(root, None).read_facts(session)

    assert facts["python"]["torch"] is None
    why = find_unfit(host, facts)
    assert why is not None
    assert "the environment that uv made for this project" in why
    monkeypatch.setattr(session, "submit", lambda *_a, **_k: pytest.fail("asked"))
    assert HostLink(host, the_agent(), None, ["python3"]).for_project(root, None).read_facts(session) == facts


@slow
def test_what_uv_says_of_a_failure_is_told(there: Account, tmp_path: Path) -> None:
    root = write_uv_project(tmp_path / "project", None, "no-such-package-anywhere")

    with pytest.raises(HostUnfit, match=r"`uv sync` failed there: .*no-such-package-anywhere"):
        make(root).build(there.connect(), lambda _line: None)

    assert built(there) == []
    assert parts(there) == []


def test_two_runs_at_once_build_once(there: Account, uv: Path, tmp_path: Path) -> None:
    root = write_uv_project(tmp_path / "project", uv, "torch")
    (there.home / "hold").touch()
    said: list[list[str]] = [[], []]
    pythons: list[str] = []

    def build(session: Session, lines: list[str]) -> None:
        pythons.append(make(root).build(session, lines.append))

    threads = [threading.Thread(target=build, args=(there.connect(), lines)) for lines in said]
    for thread in threads:
        thread.start()
    until((there.home / "held").exists, "uv at work")
    until(lambda: any("waiting for it" in line for lines in said for line in lines), "a second builder")
    (there.home / "hold").unlink()
    for thread in threads:
        thread.join()

    assert len(pythons) == 2
    assert len(set(pythons)) == 1
    assert sum("+ torch==2.9.1" in line for lines in said for line in lines) == 1


@slow
@pytest.mark.parametrize("how", ["connection", "builder"])
def test_a_builder_that_is_ended_leaves_nothing_that_counts(
    there: Account, uv: Path, tmp_path: Path, how: str
) -> None:
    root = write_uv_project(tmp_path / "project", uv, "torch")
    (there.home / "hold").touch()
    session = there.connect()
    failed: list[BaseException] = []

    def build() -> None:
        try:
            make(root).build(session, lambda _line: None)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is looked at below)
            failed.append(error)

    thread = threading.Thread(target=build)
    thread.start()
    until((there.home / "held").exists, "uv at work")
    at_work = int((there.home / "held").read_text())
    if how == "connection":
        session.close()
        until(lambda: not parts(there), "the builder's end")
    else:
        (name,) = parts(there)
        os.kill(int(name.split(".")[1]), signal.SIGKILL)
    thread.join()
    until(lambda: not Path(f"/proc/{at_work}").exists(), "uv's end")

    assert len(failed) == 1
    assert built(there) == []
    (there.home / "hold").unlink()
    python = make(root).build(there.connect(), lambda _line: None)
    assert python_says(python, "import torch.version; print(torch.version.__version__)") == "2.9.1"
    assert parts(there) == []


@pytest.mark.parametrize("when", ["here", "cache", "amid"])
def test_a_disk_without_room_is_said_so(
    account: Account, tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_uv_project(tmp_path / "project", None, "mylib")
    place = account.home / ".local" / "bin" / "uv"
    place.parent.mkdir(parents=True)
    place.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo uv 0.9.1 || { echo "No space left on device (os error 28)"; exit 2; }\n'
    )
    place.chmod(0o755)
    if when != "amid":
        cache = environments._find_cache(make_program(tmp_path / "uv", f"echo {tmp_path}/disk/uv"), {})
        assert cache == f"{tmp_path}/disk/uv"
        small = tmp_path / ("disk" if when == "cache" else "state")
        small.mkdir()
        monkeypatch.setattr(disk, "free_bytes", lambda path: 5 * 10**8 - (path == str(small)))
        words = f"499,999,999 bytes are free in {cache if when == 'cache' else small}, "
        with pytest.raises(Refusal, match=words) as refused:
            environments._check_room(str(tmp_path / "state"), cache)
        assert refused.value.kind == "host-space"
        if when == "cache":
            Path(cache).mkdir()
            environments._check_room(str(tmp_path / "state"), cache)  # all of it may lie there
        return
    with pytest.raises(HostSpace, match="No space left"):
        make(root).build(account.connect(), lambda _line: None)
    assert parts(account) == []


@slow
def test_an_environment_whose_python_is_gone_is_built_anew(there: Account, uv: Path, tmp_path: Path) -> None:
    root = write_uv_project(tmp_path / "project", uv, "torch")
    python = make(root).build(there.connect(), lambda _line: None)
    Path(python).unlink()

    assert make(root).build(there.connect(), lambda _line: None) == python

    assert python_says(python, "print(1)") == "1"


@pytest.mark.slow
def test_uv_is_brought_once_and_only_to_its_own_kind_of_machine(
    account: Account, uv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_uv_project(tmp_path / "project", uv, "torch")
    session = account.connect()  # its PATH has none
    with pytest.raises(HostUnfit, match="uv is not installed there") as refused:
        make(root).build(session, lambda _line: None)
    assert "install.sh" in str(refused.value.hint)
    with pytest.raises(HostUnfit, match="there is none in PATH"):
        Environment(root, "ship", None, OFFLINE).build(session, lambda _line: None)
    monkeypatch.setenv("PATH", f"{uv.parent}:{os.environ['PATH']}")

    said: list[str] = []

    python = Environment(root, "ship", None, OFFLINE).build(session, said.append)

    assert python_says(python, "print(1)") == "1"
    assert "are sent" in said[0]
    sha256 = hashlib.sha256(uv.read_bytes()).hexdigest()
    place = Path(layout.uv_path(str(account.root), sha256))
    assert place.read_bytes() == uv.read_bytes()
    assert place.stat().st_mode & 0o777 == 0o700
    strange = {"sha256": sha256, "system": "Linux", "machine": "pdp11"}
    with pytest.raises(Refusal, match="is for Linux pdp11"):
        environments._find_shipped(str(account.root), strange)


@pytest.mark.parametrize("path", ["../x", "/x", "a//b", "a/../b", "", ".", "a\0b"])
def test_a_recipe_that_names_something_outside_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not a recipe"):
        check_recipe({"files": [[path, "0" * 64, 1]], "script": None})
    with pytest.raises(ValueError, match="not a recipe"):
        check_recipe({"files": [], "script": path})


def age(path: Path, seconds: float, now: float) -> None:
    os.utime(path, (now - seconds, now - seconds))


def test_environments_go_a_month_after_their_last_run(tmp_path: Path) -> None:
    ended = Ended(tmp_path)
    root, now = str(ended.root), 1_800_000_000.0
    keys = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("old", "new", "ran", "part")}
    for name in ("old", "new", "ran"):
        folder = Path(layout.env_path(root, keys[name]))
        folder.mkdir(parents=True)
        age(folder, 40 * DAY if name != "new" else DAY, now)
    record = durable.read_record(str(ended.folder / layout.ATTEMPT))
    assert record is not None
    python = Path(layout.env_path(root, keys["ran"])) / layout.VENV / "bin" / "python"
    changed: dict[str, Any] = {**record, "plan": {**record["plan"], "python": str(python)}}
    durable.write_record(str(ended.folder / layout.ATTEMPT), changed)
    age(ended.folder / layout.ATTEMPT, 2 * DAY, now)

    assert env_garbage.find_unused(root, now) == [keys["old"]]

    lock = locks.open_lock(layout.env_path(root, keys["old"]) + layout.ENV_LOCK)
    assert locks.try_lock(lock)
    assert not env_garbage.remove_unused(root, keys["old"], now), "somebody builds it"
    os.close(lock)
    assert env_garbage.remove_unused(root, keys["old"], now)
    assert env_garbage.list_environments(root) == sorted([keys["new"], keys["ran"]])
    (ended.folder / layout.EXIT).unlink()
    age(ended.folder / layout.ATTEMPT, 50 * DAY, now)
    part = Path(layout.env_path(root, keys["part"]) + f".1{layout.ENV_PART}")
    part.mkdir()
    (part / "file").write_bytes(b"x" * 5000)
    lock = locks.open_lock(layout.env_path(root, keys["part"]) + layout.ENV_LOCK)
    assert locks.try_lock(lock)
    assert env_garbage.clear_parts(root, dry=False) == 0
    os.close(lock)
    assert env_garbage.clear_parts(root, dry=False) > 5000
    assert not part.exists()


def test_what_was_tidied_away_before_the_builder_came_to_it_is_asked_for(account: Account) -> None:
    job = {"root": str(account.root), "key": "0" * 64, "files": [["pyproject.toml", "1" * 64, 1]]}

    assert env_builder.build({**job, "uv": "uv", "script": None, "frozen": False, "env": {}}) == {
        "need": "files"
    }

    assert [path.name for path in (account.root / layout.ENVS).iterdir()] == ["0" * 64 + layout.ENV_LOCK]


def test_what_uv_is_told_in_hosts_toml_is_part_of_an_environments_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    monkeypatch.setattr(environments, "find_uv", lambda: make_program(tmp_path / "uv", "echo uv 0.9.1"))
    monkeypatch.setattr(environments, "find_ready", lambda _root, key: key)

    def name(**env: str) -> tuple[str, str]:
        made = Environment(tmp_path, True, None, env)
        recipe = made.recipe
        assert recipe is not None
        there = environments._answer(str(tmp_path), check_recipe(recipe.as_message()), None, env)
        return made.names[0], there["python"]

    bare = name()
    assert name(UV_CACHE_DIR="/a", UV_OFFLINE="1", UV_INDEX_A_PASSWORD="b", WANDB_MODE="offline") == bare
    named = {bare, *(name(UV_INDEX_URL=f"https://u:secret@{host}/") for host in "ab"), name(UV_X="1")}
    assert name(UV_INDEX_URL="https://me@mail:token@a/") == name(UV_INDEX_URL="https://a/") in named
    many = "x=https://{0}h/s/@k y=https://{0}i?a=b@c"
    assert name(UV_INDEX=many.format("u:secret@")) == name(UV_INDEX=many.format("")), "only its login goes"
    assert name(UV_INDEX=many.format("")) != name(UV_INDEX=many.format("").replace("@", ""))
    assert len({laptop for laptop, _ in named}) == 4
    assert len({host for _, host in named}) == 4
    assert "secret" not in str(named)
