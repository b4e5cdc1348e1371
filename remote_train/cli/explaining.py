"""`explain`: why a run is as fast as it is, and what to try."""

from __future__ import annotations

from remote_train.cli.options import HostsFile, Json, RunArgument, app, make_ask, make_screen, settings
from remote_train.cli.runs import catch_up


@app.command()
def explain(run: RunArgument = None, hosts_file: HostsFile = None, json: Json = False) -> None:
    """Say where a step's time goes, what limits it, and what to try, each with the gain it predicts."""
    from remote_train.api import find_training
    from remote_train.cli.answers import show_explanation
    from remote_train.explaining import explain_run

    settings.json = json
    training = find_training(run, hosts_file, make_ask())
    trouble = catch_up(training)
    if trouble is not None:
        with make_screen() as screen:
            screen.warn(f"as last seen; {trouble}")
    show_explanation(explain_run(training.run).as_json(), as_json=json)
