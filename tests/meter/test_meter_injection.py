"""What a training's Python is given before the script: as little as if it were not there, until an optimizer steps."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.meter.conftest import Training

# What a Python is like, as seen by its script.
LOOK = """
import json, sys
print(json.dumps([sorted(sys.modules), sys.path[1:], [str(finder) for finder in sys.meta_path]]))
"""

# A package that looks like torch to whoever imports it, so that a test need not pay for the real one.
FAKE_TORCH = {
    "torch/__init__.py": "__version__ = '1.9'\nfrom torch.optim import optimizer",
    "torch/optim/__init__.py": "",
    "torch/optim/optimizer.py": "",
}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text), "utf-8")


def test_a_script_without_torch_finds_everything_as_without_us(training: Training) -> None:
    write(training.folder, {"look.py": LOOK})
    with_us, without = training.run("look.py"), training.run("look.py", PYTHONPATH=None)
    assert with_us.stderr == without.stderr == ""
    seen, plain = json.loads(with_us.stdout), json.loads(without.stdout)
    assert seen[:2] == plain[:2]
    assert "torch" not in seen[0]
    assert not training.metrics.exists()


def test_in_isolated_mode_there_is_no_meter_and_no_harm(training: Training) -> None:
    write(training.folder, {"look.py": LOOK})
    seen = json.loads(training.run("-I", "look.py").stdout)
    assert not any("Doorbell" in finder for finder in seen[2])


def test_without_a_file_for_it_nothing_waits_for_torch(training: Training) -> None:
    write(training.folder, {"look.py": LOOK})
    seen = json.loads(training.run("look.py", REMOTE_TRAIN_METER=None).stdout)
    assert not any("Doorbell" in finder for finder in seen[2])


def test_another_sitecustomize_is_the_one_that_a_script_sees(training: Training) -> None:
    from tests.meter.conftest import HOST

    write(training.folder, {"theirs/sitecustomize.py": "NAME = __name__\nprint('theirs')", "look.py": LOOK})
    write(
        training.folder,
        {"main.py": "import sitecustomize\nprint(sitecustomize.NAME, sitecustomize.__file__)"},
    )
    theirs = str(training.folder / "theirs")
    ran = training.run("main.py", PYTHONPATH=f"{HOST / 'inject'}:{theirs}")
    assert ran.stdout.split() == ["theirs", "sitecustomize", f"{theirs}/sitecustomize.py"]


@pytest.mark.parametrize(
    "failure", ["raise ValueError('theirs')", "import a_module_that_is_not_there", "raise SystemExit(5)"]
)
def test_the_errors_of_another_sitecustomize_are_as_without_us(training: Training, failure: str) -> None:
    from tests.meter.conftest import HOST

    write(training.folder, {"theirs/sitecustomize.py": failure, "main.py": "print('trains')"})
    theirs = str(training.folder / "theirs")
    with_us = training.run("main.py", PYTHONPATH=f"{HOST / 'inject'}:{theirs}")
    without = training.run("main.py", PYTHONPATH=theirs)
    assert (with_us.returncode, with_us.stdout) == (without.returncode, without.stdout)
    # Only the traceback has a line more, where there is one.
    assert with_us.stderr.splitlines()[-1:] == without.stderr.splitlines()[-1:]


def test_remote_train_is_lent_where_none_is_installed(training: Training) -> None:
    write(
        training.folder,
        {"main.py": "from remote_train import report\nprint(report.__file__, report.should_stop())"},
    )
    ran = training.run("main.py")
    assert ran.stdout.split()[1:] == ["False"], ran.stderr


def test_an_installed_remote_train_wins(training: Training) -> None:
    write(training.folder, {"remote_train/__init__.py": "", "remote_train/report.py": "OWN = 'installed'"})
    write(training.folder, {"main.py": "from remote_train import report\nprint(report.OWN)"})
    assert training.run("main.py").stdout == "installed\n"


def test_a_torch_without_the_hook_is_refused_with_the_reason(training: Training) -> None:
    write(training.folder, {**FAKE_TORCH, "main.py": "import torch\nprint('trains')"})
    ran = training.run("main.py")
    assert (ran.stdout, ran.stderr) == ("trains\n", "")
    (line,) = training.lines("off")
    assert "torch 2.1" in line["why"]


def test_the_watched_module_is_what_its_own_loader_made_it(training: Training) -> None:
    hooks = """
        hooks = {}
        def register_optimizer_step_post_hook(hook): hooks[1] = hook
        def register_optimizer_step_pre_hook(hook): hooks[0] = hook
        """
    look = """
        import sys, importlib, torch
        module = sys.modules["torch.optim.optimizer"]
        print(sorted(vars(module.__loader__)), type(module.__loader__).__name__, module.__spec__.loader is module.__loader__)
        print(sorted(name for name in sys.modules if "torch" in name or "meter" in name), len(module.hooks))
        print([type(finder).__name__ for finder in sys.meta_path if "Door" in type(finder).__name__])
        importlib.reload(module)
        print(len(module.hooks))
        """
    write(training.folder, {**FAKE_TORCH, "torch/optim/optimizer.py": hooks, "main.py": look})
    ran = training.run("main.py")
    assert ran.stderr == ""
    assert ran.stdout.splitlines() == [
        "['name', 'path'] SourceFileLoader True",
        "['torch', 'torch.optim', 'torch.optim.optimizer'] 2",
        "[]",
        "0",
    ]


def test_a_torch_that_fails_to_import_fails_as_without_us(training: Training) -> None:
    write(
        training.folder,
        {**FAKE_TORCH, "torch/optim/optimizer.py": "raise ImportError('broken')", "main.py": "import torch"},
    )
    ran = training.run("main.py")
    assert ran.returncode == 1
    assert ran.stderr.endswith("ImportError: broken\n")
    assert not training.metrics.exists()
