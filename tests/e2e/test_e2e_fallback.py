"""An unmodified script of nanoGPT's family, no host configured or none reachable: it trains here, and everything of
a run is there: its device arguments, the data git ignores, MFU against this CPU, the checkpoint, stop and logs.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import PYTHON, REPOSITORY, Box, Laptop, commit, read_until, run_git, write_project
from tests.sshd import free_port

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.sshd, pytest.mark.torch, pytest.mark.timeout(100)]

ARGS = [
    "config/train_tiny.py",
    "--max_iters=60",
    "--n_layer=2",
    "--n_head=2",
    "--n_embd=64",
    "--block_size=32",
    "--batch_size=4",
    "--log_interval=1",
]


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    """A checkout of such a project; its data is made, and ignored by git."""
    project = tmp_path / "nano"
    shutil.copytree(REPOSITORY / "tests" / "e2e" / "data" / "configured", project)
    tokens = b"".join(n.to_bytes(2, "little") for n in [*range(65)] * 4)[:512]
    data = {"train.bin": tokens, "val.bin": tokens, "meta.pkl": b"\x80\x04}."}
    write_project(project, {f"data/tiny/{name}": content for name, content in data.items()})
    write_project(project, {".gitignore": "*.bin\n*.pkl\n*.pt\n__pycache__/\n"})
    run_git(project, "init", "-q")
    commit(project)
    return project


@pytest.mark.parametrize(
    "hosts", ["", 'default = ["4070ti"]\n[hosts.4070ti]\naddress = ["127.0.0.1"]\nport = {}\n']
)
def test_an_unmodified_script_trains_here(alone: Laptop, nano: Path, hosts: str) -> None:
    if hosts:
        alone.write_hosts(hosts.format(free_port()))

    done = alone.ok(nano, "run", "train.py", *ARGS)

    run = done.run_id()
    assert "of the nanogpt family: on a CPU it gets --device=cpu --compile=False" in done.err
    assert ("4070ti: " in done.err) == bool(hosts)
    assert b"Overriding: device = cpu\nOverriding: compile = False\n" in done.out
    assert b"found vocab_size = 65" in done.out  # the ignored data came along by itself
    assert done.out == (alone.attempt(run) / "ranks/0.log").read_bytes()
    pulled = nano / "runs" / run / "files" / "out-tiny" / "ckpt.pt"
    assert pulled.read_text() == "50\n"
    assert run_git(nano, "status", "--porcelain") == ""
    # (6 N + 12 L H Q T) tokens / s against the CPU's own peak, and why the script's own figure is another
    record = alone.ok(nano, "metrics", "--json").events[-1]
    parameters = 12 * 2 * 64**2 + 65 * 64 + 5 * 64
    flops = (6 * parameters + 12 * 2 * 2 * 32 * 32) * 4 * 32 / 0.02
    assert record["flops_per_second"] == pytest.approx(flops)
    assert record["mfu"] == pytest.approx(flops / 1e11)
    assert record["reported_mfu"] == pytest.approx(0.0001)
    assert record["dtype"] == "float32"
    assert "measured" in record["peak_source"]
    assert "nanoGPT prints" in done.err
    assert "A100" in done.err


def test_arguments_of_the_user_s_own_win(alone: Laptop, nano: Path) -> None:
    done = alone.type(nano, "run", "train.py", *ARGS, "--compile=True").expect(1)

    assert b"compile True" in done.out
    assert "it gets --device=cpu" in done.err
    argv = json.loads((nano / "runs" / done.run_id() / "run.json").read_text())["attempts"][0]["plan"]["argv"]
    assert argv[-2:] == ["--compile=True", "--device=cpu"]


def test_a_host_s_cpu_trains_it_too(laptop: Laptop, box: Box, nano: Path) -> None:
    done = laptop.ok(nano, "run", "train.py", *ARGS)

    assert " on box (cpu), python" in done.err
    assert done.out == box.log(done.run_id())
    assert b"Overriding: device = cpu" in done.out


def test_init_knows_the_family(alone: Laptop, nano: Path) -> None:
    alone.ok(nano, "init")

    text = (nano / "remote-train.toml").read_text()
    assert "--device=cpu" in text
    done = alone.ok(nano, "run", "--include", "data/tiny/*", "--", *ARGS)
    assert b"Overriding: device = cpu" in done.out


def test_a_local_run_is_stopped_and_followed_like_any_other(alone: Laptop, project: Path) -> None:
    write_project(project, {"train.py": "import time\nprint('up', flush=True)\ntime.sleep(600)\n"})
    run = alone.ok(project, "run", "-d", "train.py").run_id()
    follower = alone.popen(project, "logs", "-f", run)
    read_until(follower.stdout, b"up\n")

    alone.ok(project, "stop", "--grace", "1")

    follower.communicate(timeout=30)
    assert follower.returncode == 15
    assert b"stopped" in alone.ok(project, "ps").out


def test_the_project_s_own_python_is_used(alone: Laptop, project: Path) -> None:
    venv = project / ".venv" / "bin"
    venv.mkdir(parents=True)
    script = venv / "python"
    script.write_text(f'#!/bin/sh\nOWN=yes exec {PYTHON} "$@"\n')
    script.chmod(0o755)
    write_project(project, {"train.py": "import os\nprint('own', os.environ.get('OWN'))\n"})

    assert alone.ok(project, "run", "train.py").out == b"own yes\n"
