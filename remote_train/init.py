"""`init`: write a project file from what can be seen of the project, and say where hosts are described."""

from __future__ import annotations

import os
from pathlib import Path

from remote_train.config.families import read_family
from remote_train.config.hosts_file import hosts_path
from remote_train.config.project import find_project, read_project
from remote_train.config.project_file import render_project_file
from remote_train.errors import LocalSpace, UsageError

NAME = "remote-train.toml"
EXAMPLE = """[hosts.box]
address = ["192.168.1.36"]
user = "me"
python = "~/miniconda3/envs/torch/bin/python\""""
USUAL = ("train.py", "main.py", "run.py")


def write_project_file(cwd: Path) -> list[str]:
    """Write remote-train.toml into the project of `cwd` and return what to tell; never replaces one."""
    root = find_project(cwd, Path.home()).root
    target = root / NAME
    spec = read_project(root)
    if spec.source is not None:
        raise UsageError(
            f"{spec.source} exists already", hint="edit it; `remote-train run --dry-run` shows what it does"
        )
    script = next((name for name in USUAL if (root / name).is_file()), None)
    family = read_family(root, script, ()) if script else None
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(render_project_file(spec.project, script, (), family))
    except OSError as error:
        raise LocalSpace(f"{target}: {error.strerror}") from error
    hosts = hosts_path(None, os.environ)
    lines = [f"wrote {target}"]
    if family is not None:
        lines.append(
            f"{script} is of the {family.name} family: its device arguments and checkpoints are filled in"
        )
    known = "knows your hosts" if hosts.exists() else f"is where your hosts are described, as in:\n{EXAMPLE}"
    return [*lines, f"{hosts} {known}"]
