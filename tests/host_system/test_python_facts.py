"""Which Pythons a host has, and the fingerprint of what was found; real interpreters and scripts that pose as one."""

import json
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from remote_train.host import commands, facts, pythons
from remote_train.host.fingerprint import fingerprint, fingerprint_now, read_thread_words
from tests.host_system.conftest import PYENV

KEYS = {"path", "version", "torch", "torch_cuda", "torch_file", "error"}
VERSION_PY = "from typing import Optional\n\n__all__ = ['__version__', 'cuda']\n__version__ = '2.9.1+cu128'\ndebug = False\ncuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return folder


def make_script(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def make_environment(folder: Path, version_py: str | None = VERSION_PY) -> str:
    """A virtual environment with a torch that nobody can import."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    if version_py is not None:
        (site / "torch").mkdir()
        (site / "torch" / "__init__.py").write_text("raise SystemExit('torch was imported')\n")
        (site / "torch" / "version.py").write_text(version_py)
    return str(folder / "bin" / "python")


def one(candidate: str) -> dict[str, Any]:
    (found,) = pythons.read_pythons([candidate])
    assert set(found) == KEYS
    return found


def test_a_virtual_environment_is_told_apart_without_importing_torch(home: Path) -> None:
    python = make_environment(home / "env")
    found = one("~/env/bin/python")

    assert found["path"] == python
    assert Path(python).is_symlink()
    assert found["version"] == ".".join(str(part) for part in sys.version_info[:3])
    assert (found["torch"], found["torch_cuda"], found["error"]) == ("2.9.1+cu128", "12.8", None)
    assert found["torch_file"].endswith("site-packages/torch/version.py")


@pytest.mark.parametrize(
    ("version_py", "torch", "cuda"),
    [
        ("__version__ = '2.2.0'\ncuda = '11.8'\n", "2.2.0", "11.8"),
        ('__version__: str = "2.4.0+cpu"\ncuda: Optional[str] = None\n', "2.4.0+cpu", None),
        ("not_cuda = '1'\n__version__ = '1.13.1'\n", "1.13.1", None),
        ("nothing = 1\n", None, None),
    ],
)
def test_versions_as_torch_writes_them(
    tmp_path: Path, version_py: str, torch: str | None, cuda: str | None
) -> None:
    file = tmp_path / "version.py"
    file.write_text(version_py)
    found = pythons.read_torch(str(file))

    assert (found.get("torch"), found.get("torch_cuda")) == (torch, cuda)
    assert (found.get("error") is None) == (torch is not None)


def test_the_torch_of_this_environment() -> None:
    torch = pytest.importorskip("importlib.metadata").version("torch")

    assert one(sys.executable)["torch"].partition("+")[0] == torch.partition("+")[0]


def test_the_first_with_torch_wins_and_all_are_told(home: Path, tmp_path: Path) -> None:
    bare, good = make_environment(home / "bare", None), make_environment(home / "good")
    found = facts.collect_facts(
        ["/nowhere/python", bare, good, sys.executable], str(tmp_path / "not yet" / "there")
    )

    assert found["python"]["path"] == good
    assert [row["path"] for row in found["pythons"]] == ["/nowhere/python", bare, good, sys.executable]
    assert found["pythons"][0]["error"] == "No such file or directory"
    assert found["pythons"][1]["error"] == "torch is not installed"


def test_without_torch_one_that_runs_is_told(home: Path) -> None:
    bare = make_environment(home / "bare", None)

    assert pythons.choose_python(pythons.read_pythons(["/nowhere/python", bare]))["path"] == bare
    assert pythons.choose_python(pythons.read_pythons(["/nowhere/python"]))["path"] == "/nowhere/python"


def test_a_bare_name_is_looked_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = make_environment(home / "env")
    monkeypatch.setenv("PATH", str(Path(python).parent))

    assert one("python")["path"] == python
    assert one("no-such-python")["error"] == "No such file or directory"


def test_noise_on_stdout_is_skipped(home: Path) -> None:
    python = make_environment(home / "env")
    noisy = f'#!/bin/sh\necho "{pythons.MARKER}[1,"\nprintf "welcome"\n{python} "$@"\nprintf "\\nbye"\n'

    assert one(make_script(home / "noisy", noisy))["torch"] == "2.9.1+cu128"


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (
            "#!/bin/sh\necho one >&2; echo 'libpython3.so: cannot open' >&2; exit 127\n",
            "libpython3.so: cannot open",
        ),
        ("#!/bin/sh\nexit 3\n", "ended with code 3"),
        ("#!/bin/sh\necho hello\n", "it is not a Python: it did not answer"),
        (
            "#!/bin/sh\nprintf 'pyenv: python: command not found\\n\\nThe command exists in:\\n  3.9\\n' >&2; exit 127\n",
            "pyenv: python: command not found",
        ),
        ("#!/nowhere/interpreter\n", "No such file or directory"),
    ],
)
def test_a_broken_python_says_why(home: Path, script: str, error: str) -> None:
    found = one(make_script(home / "python", script))

    assert (found["version"], found["torch"], found["error"]) == (None, None, error)


def test_a_torch_without_its_version_file_is_broken(home: Path) -> None:
    python = make_environment(home / "env")
    next(Path(home).glob("env/lib/python3*/site-packages/torch/version.py")).unlink()

    assert one(python)["error"].startswith("torch is broken: ")


def test_a_folder_named_torch_where_we_stand_is_no_torch(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "version.py").write_text(VERSION_PY)
    monkeypatch.chdir(tmp_path)

    assert one(make_environment(home / "bare", None))["torch"] is None


def test_a_shim_is_replaced_by_the_python_behind_it(home: Path) -> None:
    python = make_environment(home / "env")
    shim = make_script(home / ".pyenv" / "shims" / "python", f'#!/bin/sh\nexec {python} "$@"\n')

    assert one(shim)["path"] == python


@pytest.mark.parametrize("version", ["2.7", "3.7"])
def test_an_old_python_is_too_old_not_broken(version: str) -> None:
    folders = sorted(PYENV.glob(version + ".*"))
    if not folders:
        pytest.skip(f"no Python {version} here")
    found = one(str(folders[0] / "bin" / "python"))

    assert found["error"] == f"Python {folders[0].name} is too old: 3.8 is the oldest that works"
    assert found["version"] == folders[0].name


def test_a_python_that_never_ends_is_given_up_and_killed_with_its_children(home: Path) -> None:
    stuck = make_script(home / "stuck", "#!/bin/sh\necho $$ >&2\nsleep 300\n")
    command = commands.start_command([stuck])
    outcome = commands.finish_commands([command], 0.5)[0]

    assert outcome.problem == "no end within 0.5 s"
    assert command.process is not None
    assert command.process.returncode == -9


def test_output_without_end_is_bounded() -> None:
    script = "import os\nfor _ in range(4000): os.write(1, b'x' * 1000)\nos.write(1, b'\\nend')"
    outcome = commands.finish_commands([commands.start_command([sys.executable, "-c", script])], 30.0)[0]

    assert outcome.problem is None
    assert len(outcome.output) <= 65536
    assert outcome.output.endswith("\nend")


def test_the_usual_places_are_searched_for_a_hint(home: Path) -> None:
    named = make_environment(home / "miniconda3" / "envs" / "torch")
    plain = make_environment(home / ".venv")
    make_environment(home / "venv", None)
    found = [row for row in facts.search_pythons() if row["path"].startswith(str(home))]

    assert found == [{"path": plain, "torch": "2.9.1+cu128"}, {"path": named, "torch": "2.9.1+cu128"}]


def test_torch_is_found_where_an_environment_says_that_it_imports_from(home: Path) -> None:
    pointing, over, bare = (home / ".pyenv" / "versions" / name for name in ("a", "b", "c"))
    make_environment(home / "checkout")
    (site,) = (home / "checkout").glob("lib/python3*/site-packages")
    for prefix, line in ((pointing, str(site)), (bare, f"# {site}")):
        make_environment(prefix, None)
        (own,) = prefix.glob("lib/python3*/site-packages")
        (own / "a.pth").write_text(f"import os\n{line}\n")
    make_environment(over, None)
    text = f"home = {home}/checkout/bin\ninclude-system-site-packages = true\n"
    (over / "pyvenv.cfg").write_text(text)

    found = [row for row in facts.search_pythons() if row["path"].startswith(str(home))]

    assert found == [{"path": f"{place}/bin/python", "torch": "2.9.1+cu128"} for place in (pointing, over)]


def test_facts_have_the_agreed_shape(tmp_path: Path) -> None:
    found = facts.collect_facts([sys.executable], str(tmp_path / "a" / "b"))

    assert set(found) == {
        *(
            "os",
            "kernel",
            "machine",
            "hostname",
            "boot_id",
            "now",
            "adapters",
            "cpu",
            "memory_bytes",
            "disk_free_bytes",
            "thread_env",
        ),
        *("python", "pythons", "gpus", "driver", "driver_cuda", "gpu_error", "fingerprint"),
    }
    assert {"model", "physical", "performance", "logical", "usable"} <= set(found["cpu"])
    assert found["memory_bytes"] > 1 << 20
    assert found["disk_free_bytes"] > 0
    assert json.loads(json.dumps(found)) == found
    assert found["fingerprint"] == fingerprint(found["python"])


@pytest.fixture
def remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, str]:
    """A python, a torch/version.py and a root with a driver and a card."""
    monkeypatch.setenv("REMOTE_TRAIN_BOOT_ID_FILE", str(tmp_path / "boot_id"))
    (tmp_path / "boot_id").write_text("this boot\n")
    python, torch = (
        make_script(tmp_path / "python", "#!/bin/sh\n"),
        make_script(tmp_path / "version.py", "v = 1\n"),
    )
    make_script(tmp_path / "proc/driver/nvidia/version", "NVRM version: 570.86.15\nGCC version: 12\n")
    make_script(tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: x\n")
    return python, torch, str(tmp_path)


CHANGES = {
    "reboot": ("boot_id", "another boot\n"),
    "interpreter": ("python", "#!/bin/bash\n"),
    "torch": ("version.py", "v = 22\n"),
    "driver": ("proc/driver/nvidia/version", "NVRM version: 575.1\n"),
    "card": ("proc/driver/nvidia/gpus/0000:02:00.0/information", ""),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_fingerprint_changes_with_what_it_stands_for(
    remembered: tuple[str, str, str], change: tuple[str, str]
) -> None:
    before = fingerprint_now(*remembered)
    assert fingerprint_now(*remembered) == before
    make_script(Path(remembered[2]) / change[0], change[1])
    assert fingerprint_now(*remembered) != before


def test_a_fingerprint_changes_with_the_gpus_that_a_login_leaves(
    remembered: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    before = fingerprint_now(*remembered)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert fingerprint_now(*remembered) != before
    assert read_thread_words()["CUDA_VISIBLE_DEVICES"] == "1"
    # Parts of divided cards (MIG), all with long names: two lists that differ at their ends are two.
    parts = [f"MIG-{number:08}-0000-0000-0000-000000000000" for number in range(112)]
    seen = []
    for last in (parts, parts[:-1]):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(last))
        seen.append(fingerprint_now(*remembered))
        assert read_thread_words()["CUDA_VISIBLE_DEVICES"] == ",".join(last)
    assert len(set(seen)) == 2


def test_a_fingerprint_outlives_what_a_driver_writes_when_it_wakes(remembered: tuple[str, str, str]) -> None:
    before = fingerprint_now(*remembered)
    make_script(Path(remembered[2]) / "proc/driver/nvidia/gpus/0000:01:00.0/information", "GPU UUID: GPU-1\n")

    assert fingerprint_now(*remembered) == before


def test_a_fingerprint_notices_what_went_away(remembered: tuple[str, str, str]) -> None:
    python, torch, root = remembered
    seen = {fingerprint_now(python, torch, root), fingerprint_now(python, None, root)}
    Path(torch).unlink()
    seen.add(fingerprint_now(python, torch, root))
    Path(python).unlink()
    seen.add(fingerprint_now(python, torch, root))

    assert len(seen) == 4
