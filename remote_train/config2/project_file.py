"""Render a remote-train.toml for `init`: what is known of the project, with comments for the rest."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from remote_train.families import Family


def render_project_file(
    project: str, script: str | None, args: Sequence[str] = (), family: Family | None = None
) -> str:
    """Render the file's text; our own reader accepts it as it stands."""
    device = family.device_args if family else {}
    parts = [
        "# How remote-train runs this project. Hosts stand in your own hosts.toml, never here.",
        *_render_run(project, script, args),
        *_render_results(family),
        "",
        "# Arguments for one kind of device only; they come last, except options that you type yourself.",
        "[device.cpu]",
        f"args = {_render_list(device.get('cpu', ()))}",
        "[device.cuda]",
        f"args = {_render_list(device.get('cuda', ()))}",
        *_render_package(family.include if family else ()),
        "",
        "# Names of variables to pass on; each is asked about once.",
        "[env]",
        'forward = []    # as in ["WANDB_PROJECT"]',
        'secret = []     # as in ["WANDB_API_KEY"]',
    ]
    return "\n".join(parts) + "\n"


def _render_run(project: str, script: str | None, args: Sequence[str]) -> list[str]:
    script_line = (
        f"script = {_render_text(script)}"
        if script
        else '# script = "train.py"    # or: module = "package.train"'
    )
    return [
        f"project = {_render_text(project)}",
        script_line,
        "# Put before the arguments that you type after `run --`.",
        f"args = {_render_list(args)}",
    ]


def _render_results(family: Family | None) -> list[str]:
    return [
        "# Files to bring home while the run goes on.",
        f"checkpoints = {_render_list(family.checkpoints if family else ())}",
        "# Added when the run is resumed from its checkpoint.",
        f"resume_args = {_render_list(family.resume_args if family else ())}",
    ]


def _render_package(include: Iterable[str]) -> list[str]:
    return [
        "",
        "[package]",
        "# Ignored by git, needed by the run.",
        f"include = {_render_list(include)}",
        "exclude = []",
        "# Folders synced once per content and shared by runs.",
        'data = []       # as in ["data/openwebtext"]',
        "# Folders that stay on each host between runs, for downloads and caches.",
        'persist = []    # as in [".cache"]',
        "# Larger packages stop, and name their biggest files.",
        "max_mb = 200",
    ]


def _render_list(items: Iterable[str]) -> str:
    return f"[{', '.join(_render_text(item) for item in items)}]"


def _render_text(text: str) -> str:
    """Render a TOML string: JSON's escapes are TOML's, but for DEL and for pairs of surrogates."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
