"""Environments of a host over a real sshd: conda, `setup` lines, and `uv = true`, where one is built, told of, reused in one flight, and built anew when it is gone."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from remote_train.host import layout
from tests.e2e.machines import poll, read_until, write_project
from tests.host.uv_kit import uv, write_uv_project
from tests.sshd import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.machines import Box, Laptop

__all__ = ["uv"]

SCRIPT = "import sys, torch.version\nprint('trained', torch.version.__version__, sys.prefix)\n"
SHOWS = """
import os, sys, torch.version
print("trained", sys.prefix, [os.environ.get(name) for name in ("CONDA_PREFIX", "FROM_SETUP", "TOKEN")])
"""
CANARY = "the-canary-itself"


@pytest.mark.slow
def test_a_ctrl_c_ends_what_is_being_built(laptop: Laptop, box: Box, uv: Path, project: Path) -> None:
    keys = {"python": "", "uv": "true", "env": '{ UV_OFFLINE = "1" }'}
    laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe(**keys)}')
    write_uv_project(project, uv, "torch")
    (project / "train.py").write_text(SCRIPT)
    if shutil.which("uv") is not None:
        pytest.skip("the uv in PATH would be found before the one that waits")
    place = box.home / ".local" / "bin" / "uv"
    place.parent.mkdir(parents=True)
    waits = f'[ "$1" != sync ] || {{ echo this takes long; sleep 1000; }}; exec {shlex.quote(str(uv))} "$@"\n'
    place.write_text(f"#!/bin/sh\n{waits}")
    place.chmod(0o755)

    process = laptop.popen(project, "run", "--no-fallback", "train.py")
    said = read_until(process.stderr, b"this takes long")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)

    assert process.returncode == 130, said + err
    assert b"nothing was started" in err
    poll(lambda: not list((box.root / layout.ENVS).glob("*.part")), "the end of the builder")
    assert [path.suffix for path in (box.root / layout.ENVS).iterdir()] == [layout.ENV_LOCK]


@pytest.mark.slow
def test_a_uv_project_is_built_reused_and_built_anew_over_sshd(
    laptop: Laptop, box: Box, uv: Path, project: Path
) -> None:
    keys = {"python": "", "uv": "true", "env": '{ UV_OFFLINE = "1" }'}
    laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe(**keys)}')
    write_uv_project(project, uv, "torch")
    (project / "train.py").write_text(SCRIPT)
    run = ("run", "--no-fallback", "train.py")
    if shutil.which("uv") is None:
        missing = laptop.type(project, *run).expect(13)
        assert "uv is not installed there" in missing.err
        assert "install.sh" in missing.err
    place = box.home / ".local" / "bin" / "uv"
    place.parent.mkdir(parents=True)
    seen = box.home / "seen by uv"
    place.write_text(f'#!/bin/sh\nenv >> {shlex.quote(str(seen))}; exec {shlex.quote(str(uv))} "$@"\n')
    place.chmod(0o755)

    first = laptop.ok(project, "run", "--no-fallback", "--secret", "TOKEN", "train.py", env={"TOKEN": CANARY})
    assert "UV_OFFLINE=1" in seen.read_text()
    assert CANARY not in seen.read_text()
    assert "TOKEN=" not in seen.read_text()

    assert "+ torch==2.9.1" in first.err
    envs = box.root / layout.ENVS
    assert f"trained 2.9.1 {envs}".encode() in first.out
    second = laptop.ok(project, *run)
    assert "trained 2.9.1" in second.out.decode()
    assert "torch==2.9.1" not in second.err
    shutil.rmtree(envs)
    third = laptop.ok(project, *run)
    assert "trained 2.9.1" in third.out.decode()
    assert "+ torch==2.9.1" in third.err
    resumed = laptop.ok(project, "run", "--from", third.run_id())
    assert "trained 2.9.1" in resumed.out.decode()

    checked = laptop.ok(project, "hosts", "check", "box")
    assert "torch 2.9" in checked.out.decode()
    elsewhere = laptop.type(box.home, "hosts", "check", "box").expect(13)
    assert "uv init" in elsewhere.out.decode() + elsewhere.err
    laptop.ok(project, "doctor", "box")

    write_uv_project(project, uv, "mylib")
    without = laptop.type(project, *run).expect(13)
    assert "has no torch" in without.err
    assert "uv add torch" in without.err


def make_conda(root: Path) -> Path:
    """Make what an installation of conda is made of: a base, one environment with torch, and one without; return the first."""
    (root / "condabin").mkdir(parents=True)
    for name in ("torch", "bare"):
        prefix = root / "envs" / name
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
        (prefix / "conda-meta").mkdir()
    prefix = root / "envs" / "torch"
    (torch,) = prefix.glob("lib/python3*/site-packages")
    write_project(
        torch, {"torch/__init__.py": "", "torch/version.py": "__version__ = '2.9.1'\ncuda = None\n"}
    )
    write_project(prefix, {"etc/conda/activate.d/a.sh": 'export ACTIVATED="in $CONDA_DEFAULT_ENV"\n'})
    return prefix


@pytest.mark.slow
def test_conda_and_lines_of_setup_over_sshd(laptop: Laptop, box: Box, project: Path) -> None:
    prefix = make_conda(box.home / "miniconda3")
    (project / "train.py").write_text(SHOWS)
    run = ("run", "--no-fallback", "--secret", "TOKEN", "train.py")
    secret = {"TOKEN": CANARY}

    def describe(conda: str, *setup: str) -> None:
        keys = {"python": "", "conda": json.dumps(conda), "setup": json.dumps(setup)}
        laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe(**keys)}')

    describe("other")
    missing = laptop.type(project, *run, env=secret).expect(13)
    assert "no conda environment other: there are bare, base, torch" in missing.err
    assert "hint: see `conda` in hosts.toml" in missing.err
    describe("bare")
    bare = laptop.type(project, *run, env=secret).expect(13)
    assert "envs/bare/bin/python (Python 3." in bare.err
    assert "has no torch" in bare.err
    assert f'hint: set `python = "{prefix}/bin/python"` for that host in hosts.toml, in place of' in bare.err
    assert not (project / "runs").exists()

    seen = box.home / "seen"
    describe("torch", 'export FROM_SETUP="$ACTIVATED"', "env > ~/seen")
    trained = laptop.ok(project, *run, env=secret)
    assert f"trained {prefix} ['{prefix}', 'in torch', '{CANARY}']" in trained.out.decode()
    assert "FROM_SETUP=in torch" in seen.read_text()
    assert CANARY not in seen.read_text()

    describe("torch", "true", "echo no such module >&2; false")
    failed = laptop.type(project, *run, env=secret).expect(22)
    assert "setup line 2 (echo no such module >&2; false) ended with code 1: no such module" in failed.err

    describe("torch", "touch ~/hangs; sleep 1000")
    process = laptop.popen(project, *run, env=secret)
    poll((box.home / "hangs").exists, "the line that hangs")
    laptop.ok(project, "stop", "--grace", "1")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 15, err
    ended = [json.loads(path.read_text()) for path in (box.root / "runs").glob("*/attempts/*/exit.json")]
    assert sorted(bool(each["stopped"]) for each in ended) == [False, False, True]
    assert not any(each["survivors"] for each in ended)
