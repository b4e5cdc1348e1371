"""The Pythons of this host: which of the candidates runs, and which torch it has, without importing torch (1.5 s).

A candidate is started once to say its version and where torch lies; torch/version.py is then read as text.
"""

import glob
import json
import os
import re
import shutil
from typing import Any, Dict, Iterator, List, Optional, Sequence

from remote_train.host import conda
from remote_train.host.commands import Command, Outcome, find_marked, finish_commands, start_command

OLDEST = (3, 8)
START_SECONDS = 20.0
MARKER = "remote-train python: "

# Runs in any Python, 2.7 too, so that one that is too old can be told apart from one that is broken. The
# current folder leaves the search path: a folder named torch there is no torch.
_PROBE = """
import sys
sys.path = [p for p in sys.path if p]
import json
where = None
if sys.version_info >= (3, 4):
    from importlib.util import find_spec
    spec = find_spec("torch")
    where = list(spec.submodule_search_locations or [])[:1] if spec else None
sys.stdout.write("\\n%s" + json.dumps([list(sys.version_info[:3]), sys.executable, where]) + "\\n")
""" % (MARKER,)

_SHIMS = "/shims/"
_VERSION = re.compile(r"^__version__\s*(?::[^=]+)?=\s*['\"]([^'\"]+)['\"]", re.MULTILINE)
_CUDA = re.compile(r"^cuda\s*(?::[^=]+)?=\s*['\"]([^'\"]+)['\"]", re.MULTILINE)

_MORE_PLACES = ("~/.venv", "~/venv", "~/.pyenv/versions/*")
_MOST_PLACES = 60
_BASES = (
    *("local/lib/{}/dist-packages", "lib/{}/site-packages", "lib/{}/dist-packages"),
    "lib/python3/dist-packages",
)
"""Where a Python that environments lie over keeps its packages, as its makers and as Debian have it."""


def start_candidates(candidates: Sequence[str]) -> List[Command]:
    """Start every candidate; hand the result to `finish_candidates`."""
    return [start_command([find_candidate(name), "-c", _PROBE]) for name in candidates]


def finish_candidates(candidates: Sequence[str], outcomes: Sequence[Outcome]) -> List[Dict[str, Any]]:
    """Return path, version, torch, torch_cuda, torch_file and error of each candidate, in their order."""
    return [_describe_candidate(name, end) for name, end in zip(candidates, outcomes)]


def _describe_candidate(name: str, outcome: Outcome) -> Dict[str, Any]:
    path = find_candidate(name)
    python = _describe(path, outcome)
    if name.startswith(conda.PREFIX):
        if path == name:
            python["error"] = conda.explain_missing(name[len(conda.PREFIX) :])
        else:
            python["conda"] = os.path.dirname(os.path.dirname(path))
    return python


def read_pythons(candidates: Sequence[str]) -> List[Dict[str, Any]]:
    """Start every candidate at once and return what each is."""
    return finish_candidates(candidates, finish_commands(start_candidates(candidates), START_SECONDS))


def find_candidate(name: str) -> str:
    """Return the path of a candidate as given: `~` expanded, a bare name looked up, links left alone.

    A virtual environment's python is a link, and only under its own name is it that environment.
    """
    if name.startswith(conda.PREFIX):
        prefix = conda.find_environment(name[len(conda.PREFIX) :])
        return os.path.join(prefix, "bin", "python") if prefix else name
    path = os.path.expanduser(name)
    if os.sep not in path:
        return shutil.which(path) or path
    return os.path.join(os.path.expanduser("~"), path)


def choose_python(pythons: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
    """Return the first with torch, else the first that runs, else the first."""
    for key in ("torch", "version"):
        for python in pythons:
            if python[key] is not None and (key == "version" or python["error"] is None):
                return python
    return pythons[0]


def _describe(path: str, outcome: Outcome) -> Dict[str, Any]:
    python: Dict[str, Any] = dict.fromkeys(("path", "version", "torch", "torch_cuda", "torch_file", "error"))
    python["path"] = path
    answer = find_marked(outcome.output, MARKER)
    if answer is None:
        python["error"] = outcome.problem or "it is not a Python: it did not answer"
        return python
    version, executable, where = json.loads(answer)
    python["version"] = ".".join(str(number) for number in version)
    if _SHIMS in path and executable:
        # A shim chooses by the folder it is called in: what was asked now must be what runs later.
        python["path"] = executable
    if tuple(version) < OLDEST:
        python["error"] = "Python %s is too old: %d.%d is the oldest that works" % (
            python["version"],
            *OLDEST,
        )
    elif not where:
        python["error"] = "torch is not installed"
    else:
        python.update(read_torch(os.path.join(where[0], "version.py")))
    return python


def read_torch(path: str) -> Dict[str, Optional[str]]:
    """Return torch, torch_cuda, torch_file and error, from the text of torch/version.py."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(65536)
    except OSError as error:
        return {"error": "torch is broken: %s: %s" % (path, error.strerror)}
    version, cuda = _VERSION.search(text), _CUDA.search(text)
    if version is None:
        return {"error": "torch is broken: no version in %s" % path}
    return {"torch": version.group(1), "torch_cuda": cuda.group(1) if cuda else None, "torch_file": path}


def search_pythons() -> List[Dict[str, str]]:
    """Return `path` and `torch` of interpreters in the usual places, for a hint; starts none of them."""
    patterns = [*_MORE_PLACES, *conda.ROOTS, *(base + "/envs/*" for base in conda.ROOTS)]
    places = [place for pattern in patterns for place in sorted(glob.glob(os.path.expanduser(pattern)))]
    found = []
    for place in places[:_MOST_PLACES]:
        files = [os.path.join(site, "torch", "version.py") for site in _list_sites(place)]
        python = os.path.join(place, "bin", "python")
        torch = next((read_torch(file).get("torch") for file in files if os.path.isfile(file)), None)
        if torch and os.access(python, os.X_OK):
            found.append({"path": python, "torch": torch})
    return found


def _list_sites(place: str) -> Iterator[str]:
    """Yield the folders that an environment imports from: its own, those that a .pth names, and its base's where it says so."""
    own = glob.glob(os.path.join(glob.escape(place), "lib/python3*/site-packages"))
    for site in own:
        yield site
        for path in glob.glob(os.path.join(glob.escape(site), "*.pth")):
            lines = _read_lines(path)
            yield from (os.path.join(site, line) for line in lines if not line.startswith(("#", "import ")))
    said = _read_lines(os.path.join(place, "pyvenv.cfg"))
    words = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in said)}
    if words.get("include-system-site-packages", "").lower() == "true":
        base = os.path.dirname(words.get("home", ""))
        for version in (os.path.basename(os.path.dirname(site)) for site in own):
            yield os.path.join(os.path.expanduser("~/.local/lib"), version, "site-packages")
            yield from (os.path.join(base, folder.format(version)) for folder in _BASES)


def _read_lines(path: str) -> List[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return [line.strip() for line in file.read(65536).splitlines() if line.strip()]
    except OSError:
        return []
