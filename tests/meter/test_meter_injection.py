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
    assert "torch 2.3" in line["why"]


HOOKS = """
    hooks = {}
    def register_optimizer_step_post_hook(hook): hooks[1] = hook
    def register_optimizer_step_pre_hook(hook): hooks[0] = hook
    """


def test_the_watched_module_is_what_its_own_loader_made_it(training: Training) -> None:
    look = """
        import sys, importlib, torch
        module = sys.modules["torch.optim.optimizer"]
        print(sorted(vars(module.__loader__)), type(module.__loader__).__name__, module.__spec__.loader is module.__loader__)
        print(sorted(name for name in sys.modules if "torch" in name), len(module.hooks))
        print([type(finder).__name__ for finder in sys.meta_path if "Door" in type(finder).__name__])
        importlib.reload(module)
        print(len(module.hooks))
        """
    write(training.folder, {**FAKE_TORCH, "torch/optim/optimizer.py": HOOKS, "main.py": look})
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


# Tells which modules of the meter the first step of an optimizer loads, beside those that were there before it.
FIRST_STEP = """
import sys, torch
from torch.optim.optimizer import hooks
torch.compiler = type(sys)("compiler")
torch.compiler.is_compiling = lambda: False
def loaded(): return {name for name in sys.modules if name.startswith("_remote_train_meter")}
before = loaded()
for hook in hooks.values(): hook(object(), (), {})
print(len(before) > 10, len(loaded() - before) > 10)
"""


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["main.py"], "True False"),
        (["-W", "default", "-c", FIRST_STEP], "True False"),
        (["torchrun"], "False True"),
        (["-m", "torch.distributed.run"], "False True"),
        (["main.py", "--multiprocessing-fork"], "False True"),
    ],
)
def test_the_meter_is_loaded_beside_torch_and_not_in_a_launcher(
    training: Training, argv: list[str], expected: str
) -> None:
    package = {**FAKE_TORCH, "torch/optim/optimizer.py": HOOKS, "torch/distributed/__init__.py": ""}
    write(training.folder, package)
    write(training.folder, dict.fromkeys(["main.py", "torchrun", "torch/distributed/run.py"], FIRST_STEP))
    ran = training.run(*argv)
    assert (ran.stdout.strip(), ran.stderr) == (expected, "")


def test_a_rank_that_has_nothing_to_write_has_no_hook(training: Training) -> None:
    look = "import sys, torch\nprint(len(sys.modules['torch.optim.optimizer'].hooks))"
    write(training.folder, {**FAKE_TORCH, "torch/optim/optimizer.py": HOOKS, "main.py": look})
    assert [training.run("main.py", RANK=rank).stdout for rank in ("0", "1")] == ["2\n", "0\n"]


@pytest.mark.parametrize("error", ["RecursionError", "MemoryError", "KeyError"])
def test_what_fails_where_the_meter_begins_is_not_raised_nor_tried_again(
    training: Training, error: str
) -> None:
    script = f"""
        import sys, torch
        from torch.optim.optimizer import hooks
        torch.compiler = type(sys)("compiler")
        torch.compiler.is_compiling = lambda: False
        tried = []
        def begin(*_):
            tried.append(1)
            raise {error}
        sys.modules["_remote_train_meter.life"].begin = begin
        for _ in range(3): hooks[1](object(), (), {{}})
        print(len(tried))
        """
    write(training.folder, {**FAKE_TORCH, "torch/optim/optimizer.py": HOOKS, "main.py": script})
    ran = training.run("main.py")
    assert (ran.stdout, ran.stderr) == ("1\n", "")


def test_a_torch_that_does_not_say_when_it_compiles_has_no_meter_and_no_harm(training: Training) -> None:
    """As torch 2.1 and 2.2 do."""
    steps = """
        import sys, torch
        from torch.optim.optimizer import hooks
        torch.compiler = type(sys)("compiler")
        for _ in range(3):
            for hook in hooks.values(): hook(object(), (), {})
        """
    write(training.folder, {**FAKE_TORCH, "torch/optim/optimizer.py": HOOKS, "main.py": steps})
    ran = training.run("main.py")
    assert (ran.returncode, ran.stderr) == (0, "")
    (line,) = training.lines()
    assert (line["kind"], "torch 2.3" in line["why"]) == ("off", True)
