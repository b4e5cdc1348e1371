"""A whole life of a training on a host, over sshd, with each Python that a host may have."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.e2e.machines import make_laptop, poll, running_box, write_project

PYENV = Path("~/.pyenv/versions").expanduser()
TRAIN = """
import os, sys, time
print("hello from %d.%d" % sys.version_info[:2], flush=True)
os.mkdir("out")
with open("out/new", "wb") as file:
    file.write(b"weights" * 1000)
os.rename("out/new", "out/ckpt.bin")
print("saved", flush=True)
while True:
    time.sleep(0.05)
"""


def make_environment(folder: Path, version: str) -> Path:
    """Make an environment of a Python with what is looked at of torch."""
    found = sorted(PYENV.glob(f"{version}.*")) if PYENV.is_dir() else []
    if not found:
        pytest.skip(f"no Python {version} here")
    subprocess.run([found[0] / "bin" / "python", "-m", "venv", "--without-pip", folder], check=True)
    torch = folder / "lib" / f"python{version}" / "site-packages" / "torch"
    torch.mkdir()
    (torch / "__init__.py").touch()
    (torch / "version.py").write_text("__version__ = '2.4.0'\ncuda = None\n")
    return folder / "bin" / "python"


def versions() -> list[object]:
    known = ["3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14"]
    return [pytest.param(each, marks=[pytest.mark.slow] if each != "3.8" else []) for each in known]


@pytest.mark.parametrize("version", versions())
def test_a_whole_life_on_a_host_whose_only_python_is(version: str, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "env", version)
    with running_box(tmp_path / "box") as box:
        laptop = make_laptop(tmp_path / "laptop", box)
        described = box.describe(python=f'"{python}"')
        laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{described}')
        project = write_project(tmp_path / "project", {"train.py": TRAIN})
        (row,) = laptop.ok(project, "hosts", "check", "--json").events
        assert row["facts"]["python"]["version"].startswith(version)
        given = ["--host", "box", "-d", "--checkpoints", "out/ckpt.bin", "--no-pull"]
        run = laptop.ok(project, "run", *given, "train.py").run_id()
        poll(lambda: b"saved" in box.log(run), "the checkpoint")
        assert laptop.ok(project, "logs").out == f"hello from {version}\nsaved\n".encode()
        laptop.ok(project, "stop", "--grace", "1")
        laptop.ok(project, "pull")
        assert (project / "runs" / run / "files/out/ckpt.bin").read_bytes() == b"weights" * 1000
        assert box.processes(run) == []
