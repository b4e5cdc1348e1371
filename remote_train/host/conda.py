"""Where a conda environment lies on this host: by its name or folder, found in files; conda itself is not run (1 s)."""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Dict, Iterator, List, Mapping, Optional

PREFIX = "conda:"
"""What a candidate for the training's Python begins with that names an environment."""
ROOTS = (
    *("~/miniconda3", "~/miniforge3", "~/mambaforge", "~/anaconda3", "~/micromamba", "~/.local/share/mamba"),
    *("/opt/conda", "/opt/miniconda3", "/opt/miniforge3", "/opt/anaconda3", "/usr/local/miniconda3"),
)
_MOST_BYTES = 65536
_MOST_NAMED = 20
_ITEM = re.compile(r"\s*-\s+(.+?)\s*(?:#.*)?$")


def find_environment(name: str) -> Optional[str]:
    """Return the folder of an environment that has a Python, None when there is none; a name with a `/` is a folder."""
    if "/" in name:
        folders = [os.path.expanduser(name)]
    else:
        folders = [folder for folder in _list_folders() if _name_of(folder) == name]
    for folder in folders:
        if os.access(os.path.join(folder, "bin", "python"), os.X_OK):
            return os.path.abspath(folder)
    return None


def explain_missing(name: str) -> str:
    """Return what to say of an environment that was not found: what there is instead."""
    if "/" in name:
        return "there is no conda environment at %s: it has no bin/python" % name
    names = sorted({_name_of(folder) for folder in _list_folders() if os.path.isdir(folder)})
    others = ": there are %s" % ", ".join(names[:_MOST_NAMED]) if names else ", and no other was found"
    return "there is no conda environment %s%s" % (name, others)


def activate(environment: Dict[str, str], prefix: str) -> None:
    """Set what `conda activate` sets, its scripts aside: PATH, CONDA_*, and the variables that the environment holds."""
    environment["PATH"] = os.path.join(prefix, "bin") + os.pathsep + environment.get("PATH", os.defpath)
    environment.update(CONDA_PREFIX=prefix, CONDA_DEFAULT_ENV=_name_of(prefix), CONDA_SHLVL="1")
    environment.update(_read_variables(prefix))


def list_scripts(prefix: str) -> List[str]:
    """Return the shell scripts that activation sources, in its order."""
    folder = os.path.join(prefix, "etc", "conda", "activate.d")
    try:
        return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(".sh")]
    except OSError:
        return []


def _read_variables(prefix: str) -> Dict[str, str]:
    """Return what `conda env config vars set` wrote."""
    import json  # noqa: PLC0415  (only an environment of conda pays for it)

    try:
        held = json.loads(_read(os.path.join(prefix, "conda-meta", "state")))["env_vars"]
    except (ValueError, KeyError, TypeError):
        return {}
    plain = held.items() if isinstance(held, dict) else ()
    return {key: value for key, value in plain if isinstance(value, str) and "\0" not in key + value and key}


def _name_of(prefix: str) -> str:
    """Return the name that conda has for an environment: base for the root of an installation."""
    root = os.path.isdir(os.path.join(prefix, "envs")) or os.path.isdir(os.path.join(prefix, "condabin"))
    return "base" if root else os.path.basename(prefix.rstrip("/"))


def _list_folders() -> Iterator[str]:
    """Yield the folders of environments that conda would know, those that it has by name first."""
    roots = list(_list_roots(os.environ))
    yield from roots
    for folder in [*_list_configured(roots), *(os.path.join(root, "envs") for root in roots)]:
        yield from _list_within(folder)
    # conda itself never looks a name up here; for environments of an installation that is in none of the usual places
    listed = _read(os.path.expanduser("~/.conda/environments.txt")).splitlines()
    yield from (line.strip() for line in listed if line.strip().startswith("/"))


def _list_roots(environ: Mapping[str, str]) -> Iterator[str]:
    if environ.get("CONDA_EXE"):
        yield os.path.dirname(os.path.dirname(environ["CONDA_EXE"]))
    if environ.get("MAMBA_ROOT_PREFIX"):
        yield environ["MAMBA_ROOT_PREFIX"]
    for root in map(os.path.expanduser, ROOTS):
        if os.path.isdir(root):
            yield root


def _list_configured(roots: List[str]) -> Iterator[str]:
    """Yield folders of environments that variables and condarc files name, and conda's own default."""
    for key in ("CONDA_ENVS_DIRS", "CONDA_ENVS_PATH"):
        yield from filter(None, os.environ.get(key, "").split(os.pathsep))
    files = ["~/.condarc", "~/.conda/.condarc", "~/.config/conda/.condarc"]
    for path in [*files, *(os.path.join(root, ".condarc") for root in roots)]:
        yield from parse_envs_dirs(_read(os.path.expanduser(path)))
    yield "~/.conda/envs"


def parse_envs_dirs(text: str) -> List[str]:
    """Return `envs_dirs` of a condarc: a YAML list of plain paths, in either of its forms."""
    found: List[str] = []
    within = False
    for line in text.splitlines():
        key, colon, rest = line.partition(":")
        if colon and key.strip() in ("envs_dirs", "envs_path") and key == key.strip():
            within = True
            inline = rest.partition(" #")[0].strip()
            if inline.startswith("["):
                found += [item.strip().strip("'\"") for item in inline.strip("[]").split(",")]
        elif within and _ITEM.match(line):
            found.append(_ITEM.match(line).group(1).strip("'\""))  # type: ignore[union-attr]  # just matched
        elif line.strip() and not line.lstrip().startswith("#"):
            within = False
    return [item for item in found if item]


def _list_within(folder: str) -> List[str]:
    path = os.path.expandvars(os.path.expanduser(folder))
    try:
        return [os.path.join(path, name) for name in sorted(os.listdir(path)) if not name.startswith(".")]
    except OSError:
        return []


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_MOST_BYTES)
    except OSError:
        return ""
