"""What git knows about a project: its files, its ignored files, its state, its uncommitted changes.

Each question is one git process, started early and finished late, so that git works while Python does. The
repository may be a stranger's: no fsmonitor, filter, external diff or text conversion of its config is run, no git looks
into its submodules and none fetches what a partial clone lacks, no index is written, and variables that point git
elsewhere (a hook's GIT_DIR) are not handed on.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from remote_train.errors import PackageError
from remote_train.package.secret_names import SECRET_FILES, SECRET_FOLDERS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_QUIET = (
    *("-c", "core.quotepath=off", "-c", "core.fsmonitor=false", "-c", "safe.bareRepository=explicit"),
    "--no-optional-locks",
)
# `git rev-parse --local-env-vars`, and the ones that change how paths are read.
_MISLEADING = frozenset(
    {
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_COMMON_DIR",
        "GIT_CONFIG",
        "GIT_CONFIG_COUNT",
        "GIT_CONFIG_PARAMETERS",
        "GIT_DIR",
        "GIT_GLOB_PATHSPECS",
        "GIT_GRAFT_FILE",
        "GIT_ICASE_PATHSPECS",
        "GIT_IMPLICIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_INTERNAL_SUPER_PREFIX",
        "GIT_LITERAL_PATHSPECS",
        "GIT_NAMESPACE",
        "GIT_NOGLOB_PATHSPECS",
        "GIT_NO_REPLACE_OBJECTS",
        "GIT_OBJECT_DIRECTORY",
        "GIT_PREFIX",
        "GIT_REPLACE_REF_BASE",
        "GIT_SHALLOW_FILE",
        "GIT_WORK_TREE",
    },
)
# `.gitmodules` and the config of a repository inside may be a stranger's too.
_SHALLOW = ("--ignore-submodules=dirty",)
_MAY_FILTER = re.compile(rb"filter|include|worktreeconfig", re.IGNORECASE)
_FILTER = re.compile(r"filter\.([^=\n]+)\.[a-z]+", re.IGNORECASE)
_OUTSIDE = ("not a git repository", "must be run in a work tree", "cannot use bare repository")
_DISTRUSTED = ("dubious ownership", "unsafe repository")
_STATUS_CAP = 4 << 20  # ignored names come last; beyond this a hint about data is not worth the wait


@dataclass(frozen=True, slots=True)
class GitState:
    """Where the project stood. `commit` None: no commit yet; `branch` None: detached."""

    commit: str | None
    branch: str | None
    dirty: bool


@dataclass(frozen=True, slots=True)
class DirtyDiff:
    """Uncommitted changes of tracked files, as git prints them; secrets by name are left out."""

    text: bytes
    truncated: bool


@dataclass(frozen=True, slots=True)
class GitListing:
    """Files relative to the folder asked about. `paths` None: git cannot say, `reason` tells why if it is news."""

    paths: list[str] | None
    reason: str | None = None
    warnings: tuple[str, ...] = ()


class GitCall:
    """One running git process; leaving the `with` block ends it. Without git every answer is empty, code None."""

    def __init__(self, root: str, *arguments: str, keep_errors: bool = False) -> None:
        command = ["git", *_QUIET, "-C", root, *arguments]
        try:
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                # A pipe that nobody reads would stop git once it is full, so only finish() may have one.
                stderr=subprocess.PIPE if keep_errors else subprocess.DEVNULL,
                env=choose_git_environment(os.environ),
            )
        except OSError:  # not installed, or not to be executed: the caller goes on without git
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            self._process.communicate()

    def finish(self) -> tuple[int | None, bytes, str]:
        """Wait for the end; return exit code, output, and what git said on stderr."""
        if self._process is None:
            return None, b"", ""
        output, errors = self._process.communicate()
        return self._process.returncode, output, (errors or b"").decode(errors="replace").strip()

    def read_at_most(self, cap_bytes: int) -> tuple[bytes, bool]:
        """Read output up to a cap; say also whether there was more."""
        if self._process is None or self._process.stdout is None:
            return b"", False
        output = self._process.stdout.read(cap_bytes + 1)
        return output[:cap_bytes], len(output) > cap_bytes


def choose_git_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Keep the user's environment without what points git to another repository; messages in English."""
    kept = {name: value for name, value in environ.items() if name not in _MISLEADING}
    never = {"GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none"}
    return kept | never | {"LC_ALL": "C", "LANGUAGE": "C"}


def start_listing(root: str) -> GitCall:
    """Ask for tracked and untracked files below `root`, ignored ones left out."""
    return GitCall(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", keep_errors=True)


def read_listing(call: GitCall, root: str) -> GitListing:
    """Read what start_listing asked for; raise PackageError when git fails in a way that is not understood."""
    code, output, said = call.finish()
    if code == 0:
        warnings = tuple(line for line in said.splitlines() if line.startswith("warning: "))
        return GitListing(paths=split_names(output), warnings=warnings)
    if code is None:
        return GitListing(paths=None, reason=_describe_missing_git(root))
    if any(words in said for words in _OUTSIDE):
        return GitListing(paths=None)
    if any(words in said for words in _DISTRUSTED):
        top = find_repository(root) or root
        how = f"git config --global --add safe.directory {shlex.quote(top)}"
        return GitListing(paths=None, reason=f"git does not trust {top}, which another user owns ({how})")
    first = said.splitlines()[0] if said else f"exit code {code}"
    raise PackageError(f"git cannot list the files of {root}: {first}", hint=f"see `git -C {root} status`")


def _describe_missing_git(root: str) -> str | None:
    return "git is not installed here" if find_repository(root) else None


def find_repository(root: str) -> str | None:
    """Return the nearest folder upwards that holds `.git`."""
    folder = root
    while not os.path.lexists(os.path.join(folder, ".git")):  # noqa: PTH118 - pathlib costs more than the search
        parent = os.path.dirname(folder)  # noqa: PTH120 - same
        if parent == folder:
            return None
        folder = parent
    return folder


def split_names(output: bytes) -> list[str]:
    """Split NUL-ended names; bytes that are not text survive as surrogate escapes."""
    return os.fsdecode(output).split("\0")[:-1]


def start_state(root: str) -> GitCall:
    """Ask for commit, branch, what is not committed below `root`, and what is ignored there, all in one."""
    options = ("--porcelain=v2", "--branch", "-z", "--no-renames", "--untracked-files=normal", *_SHALLOW)
    return GitCall(root, *switch_filters_off(root), "status", *options, "--ignored=traditional", "--", ".")


def switch_filters_off(root: str) -> list[str]:
    """Return the options with which git runs no command that the repository's config has for its contents.

    Raises PackageError for a filter that no option can name. Most configs have none: those cost no process.
    """
    if not _may_filter(root):
        return []
    with GitCall(root, "config", "--includes", "--name-only", "-z", "--get-regexp", r"^filter\.") as call:
        _, output, _ = call.finish()
    off = []
    for key in split_names(output):
        found = _FILTER.fullmatch(key)
        if found is None:
            raise PackageError(
                f"git's config of {root} has the filter {key!r}, which cannot be switched off",
                hint="a filter runs a command of the config's: remove it, or run where there is no .git",
            )
        for value in ("clean=", "smudge=", "process=", "required=false"):
            off += ["-c", f"filter.{found[1]}.{value}"]
    return off


def _may_filter(root: str) -> bool:
    """Tell whether the config that git reads for a folder may name filters; what is not sure is a yes.

    Every folder above counts: git passes over a `.git` that is no repository.
    """
    folder, above = root, ""
    while folder != above:
        if os.path.lexists(f"{folder}/HEAD"):  # git may take the folder itself for a repository
            return True
        try:
            with open(f"{folder}/.git/config", "rb") as file:  # noqa: PTH123 - as in find_repository
                config = file.read(_STATUS_CAP)
            if len(config) == _STATUS_CAP or _MAY_FILTER.search(config):
                return True
        except FileNotFoundError:
            if os.path.lexists(f"{folder}/.git"):
                return True
        except OSError:  # a file in its place: the config is elsewhere
            return True
        folder, above = os.path.dirname(folder), folder  # noqa: PTH120 - as above
    return False


def read_state(call: GitCall, root: str) -> tuple[GitState | None, list[str]]:
    """Read what start_state asked for: the state (None outside a repository) and the ignored paths below `root`.

    A folder that is ignored as a whole is one path with a slash.
    """
    output, _ = call.read_at_most(_STATUS_CAP)
    state, ignored = parse_state(split_names(output[: output.rfind(b"\0") + 1]))
    top = find_repository(root)
    prefix = root[len(top) :].lstrip("/") + "/" if top and top != root else ""
    return state, [path.removeprefix(prefix) for path in ignored if path.startswith(prefix)]


def parse_state(parts: list[str]) -> tuple[GitState | None, list[str]]:
    """Parse the parts of `git status --porcelain=v2 --branch -z --ignored`; ignored paths as from git's top."""
    headers = dict(part[2:].split(" ", 1) for part in parts if part.startswith("# branch."))
    if "branch.oid" not in headers:
        return None, []
    commit, branch = headers["branch.oid"], headers.get("branch.head")
    state = GitState(
        commit=None if commit == "(initial)" else commit,
        branch=None if branch == "(detached)" else branch,
        dirty=any(not part.startswith(("# ", "! ")) for part in parts),
    )
    return state, [part[2:] for part in parts if part.startswith("! ")]


def read_dirty_diff(root: Path, cap_bytes: int) -> DirtyDiff | None:
    """Return the uncommitted changes below `root`, at most `cap_bytes` of them; None outside a repository.

    Takes tens of milliseconds: call it after the launch. Untracked files are in the package itself.
    """
    with GitCall(str(root), "rev-parse", "--quiet", "--verify", "HEAD") as call:
        code, _, _ = call.finish()
    if code is None or code == 128:
        return None
    against = ["HEAD"] if code == 0 else ["--cached"]  # no commit yet: what is staged, against nothing
    plain = (
        "--no-ext-diff",
        "--no-textconv",
        "--no-color",
        "--submodule=short",
        *_SHALLOW,
        "--relative",
        "--src-prefix=a/",
        "--dst-prefix=b/",
    )
    with GitCall(
        str(root),
        *switch_filters_off(str(root)),
        "diff",
        *plain,
        *against,
        "--",
        ".",
        *_render_secret_pathspecs(),
    ) as call:
        return DirtyDiff(*call.read_at_most(cap_bytes))


def _render_secret_pathspecs() -> list[str]:
    inside = [f"{folder}/**" for folder in sorted(SECRET_FOLDERS)]
    return [f":(exclude,icase,glob)**/{name}" for name in (*SECRET_FILES, *inside)]
