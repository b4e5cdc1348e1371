"""What the training's own Python is given: where to report and to meter, since when, and what it runs first."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.host import garbage, layout
from tests.host.account_kit import the_agent

if TYPE_CHECKING:
    from tests.host.account_kit import Account

LOOKER = """
import json, os, sys, time
first = [finder.find_spec.__code__ for finder in sys.meta_path if type(finder).__name__ == "LastResort"]
facts = {"env": dict(os.environ), "first": [code.co_filename for code in first], "now": time.monotonic()}
print("facts " + json.dumps(facts), flush=True)
"""


def look(account: Account, **changes: Any) -> dict[str, Any]:
    """Return what a training sees, run under an account of its own."""
    started = account.start(LOOKER, **changes)
    facts: dict[str, Any] = json.loads(started.says(b"facts "))
    assert started.end()["code"] == 0
    return facts


def injected(account: Account) -> str:
    return str(account.root / "agents" / the_agent().hash / "remote_train" / "host" / "inject")


def test_a_training_is_told_where_to_meter_and_since_when(account: Account) -> None:
    before = time.monotonic()
    facts = look(account, env={"PYTHONPATH": "/one:/two"})
    folder = account.root / "runs" / "run" / "attempts" / "1"
    assert facts["env"][layout.METER_VARIABLE] == str(folder / layout.METRICS)
    assert facts["env"][layout.REPORT_VARIABLE] == str(folder / layout.REPORT)
    assert before <= float(facts["env"][layout.BEGAN_VARIABLE]) <= facts["now"]
    assert facts["env"]["PYTHONPATH"] == f"{injected(account)}:/one:/two"
    assert facts["first"] == [f"{injected(account)}/sitecustomize.py"]


def test_without_the_meter_all_else_is_there(account: Account) -> None:
    facts = look(account, meter=False, env={"PYTHONPATH": "", layout.METER_VARIABLE: "/mine"})
    assert layout.METER_VARIABLE not in facts["env"]
    assert layout.REPORT_VARIABLE in facts["env"]
    assert facts["env"]["PYTHONPATH"] == injected(
        account
    )  # no empty item: that would be the working directory


def test_a_program_stays_while_a_training_needs_it_whose_supervisor_is_dead(account: Account) -> None:
    started = account.start("print('up', flush=True); import time; time.sleep(600)")
    started.says(b"up")
    started.kill_supervisor()
    account.sessions[0].close()
    ours = Path(injected(account)).parents[2]
    os.utime(ours, (0, 0))
    agents, later = str(ours.parent), time.time()
    child = started.record["child"]
    assert garbage.find_agents(agents, later) == []
    # Other tests run the same program, so here is what kept it.
    assert the_agent().hash.encode() not in Path(f"/proc/{child}/cmdline").read_bytes()
    assert os.fsencode(ours) in garbage._read_command(str(child))


def test_what_is_loaded_in_the_trainings_python_is_shipped(account: Account) -> None:
    account.connect().request("list")
    agent = account.root / "agents" / the_agent().hash / "remote_train"
    for name in ("host/inject/sitecustomize.py", "host/meter/__init__.py", "report.py"):
        assert (agent / name).is_file(), name
