"""uv itself, fetched once for all tests, and projects that need nothing of the network: a wheel made here, a library."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import write_project

if TYPE_CHECKING:
    from pathlib import Path

LIBRARY = """
[project]
name = "mylib"
version = "1"
requires-python = ">=3.8"
[project.scripts]
hello = "mylib:main"
[build-system]
requires = ["uv_build>=0.5"]
build-backend = "uv_build"
"""
TORCH = "wheels/torch-2.9.1-py3-none-any.whl"
SOURCES = f"""
[tool.uv.sources]
torch = {{ path = "{TORCH}" }}
mylib = {{ path = "lib", editable = true }}
"""
OFFLINE = {"UV_OFFLINE": "1"}


@pytest.fixture(scope="session")
def uv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program uv: this machine's, or that of its package."""
    found = shutil.which("uv")
    folder = tmp_path_factory.mktemp("uv")
    place = folder / "bin" / "uv"
    if found is None:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), "uv"]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"uv cannot be had here: {done.stderr[-300:]}")
    else:
        place.parent.mkdir()
        place.symlink_to(found)
    return place


def write_wheel(path: Path, name: str, version: str, files: dict[str, str]) -> None:
    """Write a wheel of pure Python."""
    info = f"{name}-{version}.dist-info"
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    held = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": wheel,
    }
    held[f"{info}/RECORD"] = "".join(f"{item},,\n" for item in [*held, f"{info}/RECORD"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for item, text in held.items():
            file.writestr(item, text)


def write_uv_project(root: Path, uv: Path | None, *needs: str) -> Path:
    """Write a project that needs some of torch (which here is a version only) and mylib; with uv, lock it."""
    write_wheel(
        root / TORCH,
        "torch",
        "2.9.1",
        {"torch/__init__.py": "", "torch/version.py": "__version__ = '2.9.1'\ncuda = None\n"},
    )
    about = f'[project]\nname = "p"\nversion = "0"\nrequires-python = ">=3.8"\ndependencies = {list(needs)}\n'
    lib = {"lib/pyproject.toml": LIBRARY, "lib/src/mylib/__init__.py": "X = 5\ndef main(): print(X)\n"}
    write_project(root, {"pyproject.toml": about + SOURCES, **lib})
    if uv is not None:
        env = {**os.environ, **OFFLINE, "HOME": str(root)}
        lock = [str(uv), "lock", "-q", "--python", sys.executable]
        subprocess.run(lock, cwd=root, env=env, check=True)
    return root


def make_program(path: Path, lines: str) -> str:
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return str(path)
