"""A host with `uv = true`: the environment is built over a real sshd, told of, reused in one flight, and built anew when it is gone."""

from __future__ import annotations

import shlex
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from remote_train.host import layout
from tests.e2e.machines import poll, read_until
from tests.host.uv_kit import uv, write_uv_project

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.machines import Box, Laptop

__all__ = ["uv"]

SCRIPT = "import sys, torch.version\nprint('trained', torch.version.__version__, sys.prefix)\n"


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
    place.symlink_to(uv)

    first = laptop.ok(project, *run)

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
