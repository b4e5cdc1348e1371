"""What a run is given: variables, secrets, modules, arguments, the project file; and a dry run, which gives nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.machines import Box, Laptop, read_until, write_project

pytestmark = [pytest.mark.sshd, pytest.mark.timeout(100)]


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_variables_and_secrets(laptop: Laptop, box: Box, project: Path) -> None:
    script = (
        "import os, time\nprint(os.environ['PLAIN'], os.environ['OWN'], os.environ['TOKEN'][::-1], flush=True)\n"
        "time.sleep(600)\n"
    )
    write_project(project, {"train.py": script})
    canary = "canary-4711-secret"
    options = ["--env", "PLAIN=a b=c", "--env", "OWN", "--secret", "TOKEN"]
    process = laptop.popen(project, "run", *options, "train.py", env={"OWN": "mine", "TOKEN": canary})
    output = read_until(process.stdout, b"\n")
    run = next(path.name for path in (box.root / "runs").iterdir())

    assert output.decode() == f"a b=c mine {canary[::-1]}\n"
    assert find_canary(canary) == []
    laptop.ok(project, "show")
    laptop.ok(project, "stop", "--grace", "0")
    process.communicate(timeout=30)
    for root in (box.home, laptop.home, project):
        held = [path for path in root.rglob("*") if path.is_file() and canary.encode() in path.read_bytes()]
        assert held == []
    assert b"a b=c" in (box.attempt(run) / "attempt.json").read_bytes()  # what is no secret is recorded


def find_canary(canary: str) -> list[str]:
    """Return the command lines of this machine that have a secret in them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes()
        except OSError:
            continue
        if canary.encode() in line:
            found.append(line.decode(errors="replace"))
    return found


def test_a_project_file_that_wants_secrets_must_be_allowed(laptop: Laptop, project: Path) -> None:
    write_project(
        project,
        {
            "train.py": "import os\nprint(os.environ.get('WANDB_API_KEY'))\n",
            "remote-train.toml": '[env]\nsecret = ["WANDB_API_KEY"]\n',
        },
    )
    key = {"WANDB_API_KEY": "k-123"}

    done = laptop.type(project, "run", "train.py", env=key).expect(2)
    allowed = laptop.ok(project, "run", "--secret", "WANDB_API_KEY", "train.py", env=key)

    assert "--secret WANDB_API_KEY" in done.err
    assert "k-123" not in done.err
    assert allowed.out == b"k-123\n"
    assert laptop.ok(project, "run", "train.py").out == b"None\n"  # nothing here to give


def test_a_module(laptop: Laptop, project: Path) -> None:
    write_project(
        project, {"pkg/__init__.py": "", "pkg/go.py": "import sys\nprint(__name__, sys.argv[1:])\n"}
    )

    done = laptop.ok(project, "run", "-m", "pkg.go", "--lr", "1", "-d")

    assert done.out == b"__main__ ['--lr', '1', '-d']\n"


def test_options_after_the_script_are_its_own(laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": "import sys\nprint(sys.argv[1:])\n"})

    done = laptop.ok(project, "run", "train.py", "--help", "--host", "x", "--", "-d", "a b", "ünï")

    assert done.out.decode() == "['--help', '--host', 'x', '--', '-d', 'a b', 'ünï']\n"


def test_the_project_file_s_script(laptop: Laptop, project: Path) -> None:
    write_project(
        project,
        {
            "go.py": "import sys\nprint(sys.argv[1:])\n",
            "remote-train.toml": 'script = "go.py"\nargs = ["base"]\n[device.cpu]\nargs = ["--device=cpu"]\n',
        },
    )

    assert laptop.ok(project, "run").out == b"['base', '--device=cpu']\n"
    assert laptop.ok(project, "run", "--", "--lr=1").out == b"['base', '--lr=1', '--device=cpu']\n"
    assert laptop.ok(project, "run", "go.py", "--device=x").out == b"['base', '--device=x']\n"


def test_a_dry_run_changes_nothing_anywhere(laptop: Laptop, box: Box, project: Path) -> None:
    write_project(project, {"train.py": "open('made', 'w')\n"}, git=True)
    before = files_of(project)

    done = laptop.ok(project, "run", "--dry-run", "--env", "A=1", "train.py", "--lr", "3")

    text = done.out.decode()
    for words in ("box", "cpu", "python", "train.py --lr 3", "A=1"):
        assert words in text
    assert files_of(project) == before
    assert not (project / "runs").exists()
    assert list((box.root / "runs").iterdir()) == []
    assert box.blobs() == set()
    plan = laptop.ok(project, "run", "--dry-run", "--json", "train.py").event("plan")
    assert plan["argv"] == ["train.py"]
