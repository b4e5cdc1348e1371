"""The command `plot`: curves of one run or several as a picture."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path  # noqa: TC003  (typer reads annotations at run time)
from typing import TYPE_CHECKING, Annotated

import typer

from remote_train.cli.options import HostsFile, Json, app, make_ask, say, settings
from remote_train.metrics.figures import DOUBT, is_suspect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remote_train.metrics.series import Line

WHATS = ("loss", "mfu", "tokens")
AXES = ("step", "time")


@app.command()
def plot(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...", help="Several go into one picture; default: this project's latest."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="A .png or .svg, replaced as a whole.")
    ] = ...,  # type: ignore[assignment]  # how typer spells a required option
    x: Annotated[
        str | None, typer.Option("--x", metavar="step|time", help="Only against this. [default: both]")
    ] = None,
    what: Annotated[
        str, typer.Option("--what", metavar="LIST", help="Which of loss, mfu and tokens, with commas.")
    ] = "loss,mfu,tokens",
    log: Annotated[bool, typer.Option("--log", help="The loss on a logarithmic scale.")] = False,
    hosts_file: HostsFile = None,
    json: Json = False,
) -> None:
    """Draw loss, MFU and tokens/s of runs against step and time."""
    from remote_train.api import find_training
    from remote_train.cli.runs import catch_up
    from remote_train.plotting import parse_kind, read_lines, write_picture
    from remote_train.show.jsonl import write_event
    from remote_train.show.plot import check_drawing, render_plot

    settings.json = json
    kind = parse_kind(output)
    wanted = parse_list(what, WHATS, "--what")
    axes = AXES if x is None else parse_list(x, AXES, "--x")
    check_drawing()
    found = [find_training(run, hosts_file, make_ask()) for run in (runs or (None,))]
    for training in found:
        trouble = catch_up(training)
        if trouble is not None:
            say(f"{training.id}: as last seen; {trouble}")
    chosen = list({training.id: training.run for training in found}.values())
    lines = read_lines(chosen, wanted, axes)
    left_out = [run.id for run in chosen if run.id not in {line.run for line in lines}]
    doubtful = list_doubtful(lines)
    write_picture(output, render_plot(lines, kind, log=log))
    if json:
        rows = [{**asdict(line), "points": len(line.points)} for line in lines]
        write_event(
            sys.stdout.buffer, "plot", {"path": output, "kind": kind, "lines": rows, "left_out": left_out}
        )
    else:
        say(f"wrote {output}: {render_contents(lines)}")
    for name in left_out:
        say(f"not in it: {name}, of which nothing of {', '.join(wanted)} is known")
    for name in doubtful:
        say(f"{name}: MFU over 130 % in it: {DOUBT}")


def list_doubtful(lines: Sequence[Line]) -> list[str]:
    """Return the runs whose line of MFU is not to be believed."""
    rated = [line for line in lines if line.what == "mfu"]
    return list(dict.fromkeys(line.run for line in rated if any(is_suspect(y) for _, y in line.points)))


def render_contents(lines: Sequence[Line]) -> str:
    """Return which figures of which runs a picture has, and from what."""
    figures = {line.what: "" for line in lines}
    for what in figures:
        figures[what] = ", ".join(sorted({line.source for line in lines if line.what == what}))
    runs = ", ".join(dict.fromkeys(line.run for line in lines))
    return f"{', '.join(f'{what} (from {source})' for what, source in figures.items())} of {runs}"


def parse_list(text: str, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    """Return the words of a list with commas, each once, in the order of `known`."""
    words = {word.strip() for word in text.split(",") if word.strip()}
    unknown = sorted(words - set(known))
    if unknown or not words:
        named = f"{', '.join(unknown)}: " if unknown else ""
        raise typer.BadParameter(f"{named}one or several of {', '.join(known)}", param_hint=option)
    return tuple(word for word in known if word in words)
