"""The Python API, as a script of a user's calls it: in a process of its own, over a real sshd."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import PYTHON, Box, Laptop, write_project

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.sshd, pytest.mark.timeout(100)]

TRAIN = """
import sys, time
print("flops per token: 1000000")
for n in range(1, 6):
    print(f"step {n}/5 | loss {5 - n:.4f} | 100.0 ms | 10,000 tok/s", flush=True)
open("ckpt.pt", "w").write("weights")
if "forever" in sys.argv:
    time.sleep(600)
sys.exit(3 if "fail" in sys.argv else 0)
"""


def call(laptop: Laptop, project: Path, script: str) -> str:
    """Run a user's script; nothing of ours may be printed, and it must end by itself."""
    done = subprocess.run(
        [str(PYTHON), "-c", script],
        cwd=project,
        env=laptop.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_launch_wait_logs_metrics_and_pull(laptop: Laptop, box: Box, project: Path) -> None:
    write_project(project, {"train.py": TRAIN})

    printed = call(
        laptop,
        project,
        "import remote_train\n"
        "training = remote_train.launch('train.py', host='box', name='by-api')\n"
        "print(training.id, training.wait())\n"
        "print(len(b''.join(training.logs())))\n"
        "print([(record.step, record.loss, record.mfu) for record in training.metrics()][-1])\n"
        "print(training.state()['state'], [path.name for path in training.pull().unchanged])\n",
    )

    assert printed.splitlines() == [
        "by-api 0",
        str(len(box.log("by-api"))),
        "(5, 0.0, 0.1)",
        "ended ['ckpt.pt']",
    ]


def test_failures_have_the_exit_code_of_the_command_line(laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": TRAIN})

    printed = call(
        laptop,
        project,
        "import remote_train\n"
        "from remote_train.errors import UsageError\n"
        "print(remote_train.launch('train.py', 'fail').wait())\n"
        "try:\n    remote_train.launch('train.py', host='bxo')\n"
        "except UsageError as error:\n    print(error.exit_code, error.hint)\n"
        "try:\n    remote_train.launch('train.py', hsot='x')\n"
        "except TypeError as error:\n    print('hsot' in str(error))\n",
    )

    lines = printed.splitlines()
    assert lines[0] == "1"
    assert lines[1].startswith("2 did you mean 'box'?")
    assert lines[2] == "True"


def test_stop_and_find_again(laptop: Laptop, box: Box, project: Path) -> None:
    write_project(project, {"train.py": TRAIN})

    printed = call(
        laptop,
        project,
        "import remote_train\n"
        "training = remote_train.launch('train.py', 'forever', env=('A=1',))\n"
        "print(training.stop(grace=0)['state'])\n"
        "from remote_train.api import find_training\n"
        "again = find_training()\n"
        "print(again.id == training.id, again.wait(), again.describe()['exit'])\n",
    )

    assert printed.splitlines() == ["ended", "True 15 stopped"]
    (run,) = [path.name for path in (box.root / "runs").iterdir()]
    assert box.processes(run) == []


def test_resume_and_a_new_run_from_it(laptop: Laptop, box: Box, project: Path) -> None:
    write_project(project, {"train.py": TRAIN, "remote-train.toml": 'resume_args = ["fail"]\n'})

    printed = call(
        laptop,
        project,
        "import remote_train\n"
        "training = remote_train.launch('train.py', name='first')\n"
        "print(training.wait())\n"
        "again = training.resume('box', args=('more',))\n"
        "print(again.id, again.attempt, again.wait())\n"
        "print(again.run.read()['attempts'][1]['plan']['argv'])\n"
        "print(remote_train.launch(origin='first', name='second').wait())\n",
    )

    assert printed.splitlines() == [
        "0",
        "first 2 1",
        "['train.py', 'more', 'fail']",
        "0",
    ]
    assert sorted(path.name for path in (box.root / "runs").iterdir()) == ["first", "second"]
