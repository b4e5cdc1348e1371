"""Which variables of this laptop a run gets: those of the flags, and those its project asks for after a yes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from remote_train.errors import UsageError
from remote_train.memory import consent_path
from remote_train.records import read_json, remember_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from remote_train.config.project_spec import ProjectSpec
    from remote_train.transport import Ask


def choose_environment(
    root: Path, spec: ProjectSpec, given: Sequence[str], secret: Sequence[str], ask: Ask | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the plain and the secret variables of a run; raise UsageError for one that has no value here."""
    plain = dict(_parse_given(item) for item in given)
    secrets = {name: _read_own(name, "--secret") for name in secret}
    wanted_plain = [name for name in spec.env_forward if name not in plain]
    wanted_secret = [name for name in spec.env_secret if name not in secrets]
    allowed = _ask_consent(root, wanted_plain, wanted_secret, ask)
    plain.update({name: os.environ[name] for name in wanted_plain if name in allowed and name in os.environ})
    secrets.update(
        {name: os.environ[name] for name in wanted_secret if name in allowed and name in os.environ}
    )
    return plain, secrets


def _parse_given(item: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not name.isidentifier() or not name.isascii():
        raise UsageError(f"--env {item}: {name!r} is not the name of a variable")
    return name, value if equals else _read_own(name, "--env")


def _read_own(name: str, flag: str) -> str:
    if name not in os.environ:
        raise UsageError(f"{flag} {name}: it has no value here", hint=f"`export {name}=…` first")
    return os.environ[name]


def _ask_consent(root: Path, plain: Iterable[str], secret: Iterable[str], ask: Ask | None) -> set[str]:
    """Return the names the user lets this project have; a project file may be a stranger's."""
    path = consent_path(root)
    remembered = set(read_json(path).get("names", []))
    plain_new = [name for name in plain if name not in remembered and name in os.environ]
    secret_new = [name for name in secret if name not in remembered and name in os.environ]
    new = [*plain_new, *secret_new]
    if not new:
        return remembered
    if ask is None:
        flags = [f"--env {name}" for name in plain_new] + [f"--secret {name}" for name in secret_new]
        raise UsageError(
            f"the project file asks for {', '.join(new)} of this machine's environment",
            hint=f"pass them on with {' '.join(flags)}, or run once on a terminal and say yes",
        )
    if ask(f"The project file asks for {', '.join(new)} of your environment. Pass them to its runs?"):
        remember_json(path, {"names": sorted(remembered | set(new))})
        return remembered | set(new)
    return remembered
