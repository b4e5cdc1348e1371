"""The house rules that no linter knows: budgets, broad excepts, leaks of the machine we work on, links that lead nowhere."""

from __future__ import annotations

import ast
import itertools
import re
import statistics
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SOURCE = ("remote_train/", "examples/", "bench/")
FILE_LINES, FUNCTION_LINES, MEDIAN_LINES = 350, 50, 8

# The top levels, where a bug of ours becomes an exit code or an error frame. Elsewhere a broad except must end in `raise`.
MAY_CATCH_ALL = {
    "remote_train/cli/main.py": 1,
    "remote_train/host/meter/guard.py": 1,  # around all of ours in the training's process
    "remote_train/host/inject/sitecustomize.py": 1,  # around what is loaded and begun there, before there is a guard
    "remote_train/host/steps.py": 1,  # around a script's own values, which may raise anything
}


@cache
def list_files() -> list[str]:
    """List what git tracks or would track, as paths below the root; deleted ones are left out."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return sorted({name for name in listed if name and (ROOT / name).is_file()})


def list_source() -> list[str]:
    """List the project's own Python, tests left out."""
    found = [name for name in list_files() if name.startswith(SOURCE) and name.endswith(".py")]
    assert len(found) > 20, "the list of files is not what it should be"
    return found


@cache
def parse(name: str) -> ast.Module:
    """Parse one file."""
    return ast.parse((ROOT / name).read_text(encoding="utf-8"), name)


def count_lines(name: str, function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count a function's lines, docstring included; of a command only the body: each of its options is a parameter."""
    first = function.body[0].lineno if name.startswith("remote_train/cli/") else function.lineno
    return (function.end_lineno or first) - first + 1


def count_function_lines() -> dict[str, int]:
    return {
        f"{name}:{node.lineno} {node.name}": count_lines(name, node)
        for name in list_source()
        for node in ast.walk(parse(name))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def catches_all(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    names = {node.id if isinstance(node, ast.Name) else None for node in caught}
    return handler.type is None or bool(names & {"Exception", "BaseException"})


def passes_on(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def find_broad_excepts(tree: ast.Module) -> list[int]:
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
    return [node.lineno for node in handlers if catches_all(node) and not passes_on(node)]


def find_broken_links(name: str) -> list[str]:
    """Find the links of a Markdown file to files of the project that are not there, and to headings that are not."""
    text = (ROOT / name).read_text(encoding="utf-8")
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"(?m)^    .*$|`[^`\n]*`", "", text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        if not target.exists() or (anchor and anchor not in list_anchors(target)):
            broken.append(link)
    return broken


def list_anchors(path: Path) -> set[str]:
    titles = re.findall(r"(?m)^#+ +(.+?) *$", path.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def list_pages() -> list[str]:
    return [name for name in list_files() if name.endswith(".md")]


def test_no_file_is_over_its_budget() -> None:
    lines = {name: (ROOT / name).read_bytes().count(b"\n") for name in list_source()}
    assert {name: count for name, count in lines.items() if count > FILE_LINES} == {}


def test_no_function_is_over_its_budget_and_most_are_short() -> None:
    lines = count_function_lines()
    assert {name: count for name, count in lines.items() if count > FUNCTION_LINES} == {}
    assert statistics.median(lines.values()) <= MEDIAN_LINES


def test_only_the_top_levels_catch_everything() -> None:
    found = {name: len(find_broad_excepts(parse(name))) for name in list_source()}
    assert {name: count for name, count in found.items() if count} == MAY_CATCH_ALL


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("except Exception:\n    pass", [3]),
        ("except (OSError, BaseException) as error:\n    print(error)", [3]),
        ("except:\n    raise ValueError", [3]),
        ("except BaseException:\n    close()\n    raise", []),
        ("except OSError:\n    pass", []),
    ],
)
def test_a_broad_except_is_recognised(code: str, lines: list[int]) -> None:
    assert find_broad_excepts(ast.parse(f"try:\n    work()\n{code}")) == lines


def test_nothing_names_the_machine_we_work_on() -> None:
    # This folder, and the hosts of package registries, spelt apart so that this file does not name them itself.
    leaks = [
        f"{ROOT}/",
        *(".".join(host) for host in (("pypi", "org"), ("pythonhosted", "org"), ("download", "pytorch"))),
    ]
    found = [
        f"{name}: {leak}"
        for name in list_files()
        for leak in leaks
        if leak.encode() in (ROOT / name).read_bytes()
    ]
    assert found == []


# What runs code of a file it reads. The laptop never does; on the host the training's own Python may, with `weights_only`.
UNPICKLERS = {
    "pickle",
    "_pickle",
    "cPickle",
    "shelve",
    "marshal",
    "joblib",
    "dill",
    "cloudpickle",
    "torch",
    "numpy",
}
METER = ("remote_train/host/inject/", "remote_train/host/meter/")
MAY_UNPICKLE = {
    "remote_train/host/bench_gpt.py": {"torch"},
    "remote_train/host/matmul_peak.py": {"torch"},
    "remote_train/host/model_files.py": {"pickle", "torch"},  # the former for the name of an error
    "remote_train/host/model_weights.py": {"torch"},
}


def find_imports(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found


def test_nothing_of_ours_can_unpickle_but_in_the_trainings_own_python() -> None:
    ours = [name for name in list_source() if name.startswith("remote_train/")]
    found = {name: find_imports(parse(name)) & UNPICKLERS for name in ours}
    for name in [name for name in ours if name.startswith(METER)]:  # inside the training, and reads no file
        assert ".load(" not in (ROOT / name).read_text("utf-8")
        found[name] -= {"torch"}
    assert {name: modules for name, modules in found.items() if modules} == MAY_UNPICKLE
    text = (ROOT / "remote_train/host/model_files.py").read_text("utf-8")
    assert text.count("torch.load(") == text.count("torch.load(file, **options)") + text.count(
        "mmap=True, **options)"
    )
    assert '"weights_only": True' in text
    assert "pickle.load" not in text


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from torch import load", "import a, shelve as b", "def f():\n    import marshal"],
)
def test_an_unpickler_is_recognised(code: str) -> None:
    assert find_imports(ast.parse(code)) & UNPICKLERS


def test_there_are_pages_to_check() -> None:
    assert {"README.md", "CONTRIBUTING.md"} <= set(list_pages())


@pytest.mark.parametrize("name", list_pages())
def test_links_between_pages_lead_somewhere(name: str) -> None:
    assert find_broken_links(name) == []


def test_the_example_of_hosts_toml_is_toml_with_hosts() -> None:
    assert tomllib.loads((ROOT / "hosts.example.toml").read_text(encoding="utf-8"))["hosts"]


def test_every_module_stands_on_its_floor_of_the_map() -> None:
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    rank = {name: number for number, layer in enumerate(layers) for name in layer.split(" : ")}
    rows = re.findall(r"(?m)^\| [\w ]+ \| (`[^|]+)\|", page.partition("## Floors")[2].partition("\n## ")[0])
    floors = [re.findall(r"`(\w+)(?:/|\.py)?`", row) for row in rows]
    assert sorted(itertools.chain(*floors)) == sorted(rank)
    for upper, lower in itertools.pairwise([[rank[name] for name in names] for names in floors]):
        assert max(upper) <= min(lower)
    transports = [path.name for path in (ROOT / "remote_train/transport").glob("[a-z]*.py")]
    assert [name for name in transports if not re.search(rf"\b{re.escape(name)}`", page)] == []


def test_every_script_and_every_file_of_the_readme_is_there() -> None:
    named = set(
        re.findall(r"\b((?:scripts|examples|docs|bench)/[\w./-]*\w)", (ROOT / "README.md").read_text("utf-8"))
    )
    assert named, "the README names none of our files"
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_scripts_are_short_and_can_be_run() -> None:
    scripts = [ROOT / name for name in list_files() if name.startswith("scripts/")] + [ROOT / ".ci" / "run"]
    assert len(scripts) > 4
    for script in scripts:
        assert script.stat().st_mode & 0o111, f"{script.name} cannot be run"
        assert script.read_bytes().startswith(b"#!")
        assert len(script.read_text("utf-8").splitlines()) <= 25


def test_every_locked_version_is_one_the_project_allows() -> None:
    locked = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if "==" in line
    )
    versions = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in locked.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = project["project"]["optional-dependencies"]
    texts = [
        *project["project"]["dependencies"],
        *(requirement for extra in extras.values() for requirement in extra),
        *project["build-system"]["requires"],
    ]
    for requirement in map(Requirement, texts):
        assert requirement.specifier.contains(versions[requirement.name.lower()]), requirement
