"""Commands about runs that exist: logs, ps, show, stop, metrics."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from remote_train.cli.options import (
    FailoverAfter,
    GiveUp,
    HostsFile,
    Json,
    NoPull,
    RunArgument,
    WithFailover,
    app,
    choose_give_up,
    make_ask,
    make_listener,
    make_screen,
    say,
    settings,
)
from remote_train.cli.run import check_failover, stay

if TYPE_CHECKING:
    from remote_train.api import Training
    from remote_train.listener import Listener


def _parse_ranks(text: str, processes: int) -> set[int]:
    if text == "all":
        return set(range(processes))
    if text.isdigit() and int(text) < processes:
        return {int(text)}
    raise typer.BadParameter(
        f"{text!r}: this run has ranks 0 to {processes - 1}, or `all`", param_hint="--rank"
    )


def catch_up(training: Training) -> str | None:
    """Bring the mirror up to date; return why it could not be, for records that are shown as last seen."""
    from remote_train.errors import ConnectionLost, RemoteTrainError

    try:
        if not training.is_complete():
            training.state()
            training.catch_up()
    except (RemoteTrainError, ConnectionLost) as error:
        return str(error)
    return None


@app.command()
def logs(
    run: RunArgument = None,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Stay until the end, with metrics, as `run` does.")
    ] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", metavar="N", min=0, help="Begin with the last N lines.")
    ] = None,
    rank: Annotated[str, typer.Option("--rank", metavar="R", help="A rank's number, or `all`.")] = "0",
    attempt: Annotated[
        int | None,
        typer.Option("--attempt", metavar="K", min=1, help="An older attempt's. [default: the newest]"),
    ] = None,
    no_pull: NoPull = False,
    give_up: GiveUp = None,
    failover: WithFailover = False,
    failover_after: FailoverAfter = None,
    hosts_file: HostsFile = None,
    json: Json = False,
) -> None:
    """Print a run's output; attach to it again with -f."""
    from remote_train.api import find_training

    settings.json = json
    patience = check_failover(wanted=failover, after=failover_after, pull=not no_pull, stays=True)
    if failover and (attempt is not None or not follow):
        raise typer.BadParameter("only with -f, and for the newest attempt", param_hint="--failover")
    training = find_training(run, hosts_file, make_ask(), attempt)
    shown = _parse_ranks(rank, training.processes)
    with make_screen() as screen:
        listener = make_listener(screen, prefix_ranks=len(shown) > 1)
        if follow:
            wishes = {"shown": shown, "tail": tail, "give_up": choose_give_up(give_up), "pull": not no_pull}
            stay(lambda: training, screen, listener, failover=patience, **wishes)
            return
        trouble = show_now(training, listener, shown, tail)
        if trouble is not None:
            screen.warn(f"as last seen; {trouble}")


def show_now(training: Training, listener: Listener, shown: set[int], tail: int | None) -> str | None:
    """Show a run's output as it is now, several ranks one after the other; return why it is as last seen."""
    from remote_train.errors import ConnectionLost, RemoteTrainError

    if training.is_complete() or (tail is None and len(shown) > 1):
        trouble = catch_up(training)
        training.show_mirror(listener, shown, tail)
        return trouble
    try:
        return training.show_now(listener, shown, tail)
    except (RemoteTrainError, ConnectionLost) as error:
        return str(error)


@app.command()
def ps(
    everything: Annotated[
        bool, typer.Option("-a", "--all", help="Runs of every project, not just this one.")
    ] = False,
    hosts_file: HostsFile = None,
    json: Json = False,
) -> None:
    """List runs with their state, loss and MFU."""
    from remote_train.api import Training
    from remote_train.attempts import OVER
    from remote_train.cli.answers import show_runs
    from remote_train.find import current_project, link_of
    from remote_train.query import make_row, reach_fenced, refresh_all
    from remote_train.records import list_runs

    settings.json = json
    project = None if everything else current_project()
    found = list_runs(project)
    if not found and not json:
        say("no run of this project; `remote-train ps --all` lists every run")
        return
    going = [run for run in found if run.read()["state"] not in OVER]
    reach_fenced(found, lambda run, number: link_of(run, hosts_file, make_ask(), number))
    troubles = refresh_all(going, lambda run: link_of(run, hosts_file, make_ask()))
    for run in going:  # of those that have ended meanwhile this is the last that is brought by itself
        if run.id not in troubles:
            trouble = catch_up(Training(run, link_of(run, hosts_file, make_ask())))
            troubles.update({run.id: trouble} if trouble else {})
    show_runs([make_row(run, troubles.get(run.id)) for run in found], as_json=json)


@app.command()
def show(run: RunArgument = None, hosts_file: HostsFile = None, json: Json = False) -> None:
    """Show everything that is known of one run."""
    from remote_train.api import find_training
    from remote_train.cli.answers import show_run
    from remote_train.find import link_of
    from remote_train.query import reach_fenced

    settings.json = json
    training = find_training(run, hosts_file, make_ask())
    reach_fenced([training.run], lambda run, number: link_of(run, hosts_file, make_ask(), number))
    trouble = catch_up(training)
    if trouble is not None:
        with make_screen() as screen:
            screen.warn(f"as last seen; {trouble}")
    show_run(training.describe(), as_json=json)


@app.command()
def stop(
    run: RunArgument = None,
    grace: Annotated[
        float,
        typer.Option(
            "--grace", metavar="SECONDS", min=0, max=86_400, help="Time to end by itself after TERM."
        ),
    ] = 30.0,
    hosts_file: HostsFile = None,
    json: Json = False,
) -> None:
    """Stop a run: TERM, a grace, then everything of it is killed."""
    from remote_train.api import find_training
    from remote_train.fencing import list_pending
    from remote_train.find import link_of
    from remote_train.query import reach_fenced

    if math.isnan(grace):
        raise typer.BadParameter("nan is no time", param_hint="--grace")
    settings.json = json
    training = find_training(run, hosts_file, make_ask())
    with make_screen() as screen:
        listener = make_listener(screen)
        record = training.stop(grace, listener)
        reach_fenced([training.run], lambda run, number: link_of(run, hosts_file, make_ask(), number))
        for _, host in list_pending(training.run):
            text = f"an older copy may still run on {host}: the first command that reaches {host} stops it"
            listener.tell("warn", text=text)
        if json:
            listener.tell("stopped", run=training.id, state=record["state"], exit=record["exit"])
        elif record["state"] == "ended":
            screen.say(f"{training.id} has ended, nothing of it is left")


@app.command()
def metrics(
    run: RunArgument = None,
    csv: Annotated[
        bool, typer.Option("--csv", help="Every record, as comma-separated values with a header.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Every row of the table, not only as many as fit.")
    ] = False,
    all_attempts: Annotated[
        bool,
        typer.Option("--all-attempts", help="Also what an attempt did before the next began further back."),
    ] = False,
    hosts_file: HostsFile = None,
    json: Json = False,
) -> None:
    """Print a run's metrics over all its attempts, from each of its sources: a table, or every record as JSON or CSV."""
    from remote_train.api import find_training
    from remote_train.cli.answers import MOST_ROWS, print_metrics, print_table
    from remote_train.watch import read_curve

    settings.json = json
    if csv and json:
        raise typer.BadParameter("--csv and --json are two forms: choose one", param_hint="--csv")
    training = find_training(run, hosts_file, make_ask())
    trouble = catch_up(training)
    if trouble is not None:
        say(f"as last seen; {trouble}")
    if csv or json:
        records = training.metrics(all_attempts=all_attempts)
        count = print_metrics(records, training.hops(), csv=csv)
    else:
        windows = None if everything else 4 * MOST_ROWS
        records = read_curve(training.run, everything=all_attempts, windows=windows)
        count = print_table(records, everything=everything)
    if not count:
        say(f"{training.id} has no metrics so far")
