"""Every name inside the state root, for both ends. Nobody else joins these strings.

agents/HASH/            our own program, by the hash of its source
blobs/ab/cdef…          file contents, by SHA-256
blobs/incoming/SHA256   the first bytes of large contents that are on their way
envs/HASH/              environments that uv has built, by what they are made of; HASH.lock is held by who builds
uv/SHA256/uv            a laptop's own uv, where hosts.toml says to bring it
data/ID/                data folders that runs share, by the hash of their manifest: hard links to blobs
packages/ID.json        manifests, of packages and of data folders, by their own hash
agent.log               what our program there said when it failed by a mistake of ours
peaks/                  measured matmul peaks
persist/PROJECT/…       folders that outlive runs
runs/ID/attempts/K/     attempt.json code/ ranks/ launcher.log clock.jsonl peak.json exit.json stop polled lock reserve*
                        queue.json (why it waits for GPUs)
                        metrics.jsonl (the meter's) report.jsonl (the script's) telemetry.jsonl (the supervisor's)
                        weights/: models of checkpoints alone, made when they are asked for
trash/                  what was taken away and is being removed
usage.json              what all of it takes, as counted last
tickets/BOOT/N          attempts that use GPUs of a machine or wait for some, in order of arrival; BOOT/lock is held while they
                        are looked at
gc.lock tidy.lock       shared by starts, exclusive where files are taken away; held by the one that tidies
"""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Optional

FORMAT = 1

AGENTS = "agents"
AGENT_LOG = "agent.log"
BLOBS = "blobs"
DATA = "data"
INCOMING = "incoming"
ENVS = "envs"
ENV_LOCK = ".lock"
ENV_PART = ".part"
VENV = "venv"
UV = "uv"
PACKAGES = "packages"
PEAKS = "peaks"
PERSIST = "persist"
RUNS = "runs"
TRASH = "trash"
USAGE = "usage.json"
GC_LOCK = "gc.lock"
TIDY_LOCK = "tidy.lock"
TICKETS = "tickets"
TICKETS_LOCK = "lock"
TICKET = "%012d"
ATTEMPTS = "attempts"

ATTEMPT = "attempt.json"
CLAIM = "claim.json"
CODE = "code"
RANKS = "ranks"
LAUNCHER_LOG = "launcher.log"
SETUP_SCRIPT = "setup.sh"
SUPERVISOR_LOG = "supervisor.log"
CLOCK = "clock.jsonl"
PEAK = "peak.json"
QUEUE = "queue.json"
EXIT = "exit.json"
STOP = "stop"
WEIGHTS = "weights"
RESERVE = "reserve"
LARGE_RESERVE = "reserve.large"
PROBE = "reserve.probe"
LOCK = "lock"
TORCHRUN = "torchrun"
RANK_ENDS = "ends.jsonl"
RANK_BEGINS = "begins.jsonl"
RANK_ERROR = "%d.error.json"
POLLED = "polled"
REPORT = "report.jsonl"
METRICS = "metrics.jsonl"
TELEMETRY = "telemetry.jsonl"

STOP_VARIABLE = "REMOTE_TRAIN_STOP"
REPORT_VARIABLE = "REMOTE_TRAIN_REPORT"
METER_VARIABLE = "REMOTE_TRAIN_METER"
BEGAN_VARIABLE = "REMOTE_TRAIN_BEGAN"
ERROR_VARIABLE = "TORCHELASTIC_ERROR_FILE"

COOKIE = "REMOTE_TRAIN_COOKIE"
RUN_VARIABLE = "REMOTE_TRAIN_RUN"
AFFINITY_VARIABLE = "REMOTE_TRAIN_AFFINITY"

OTHERS = {
    "launcher": LAUNCHER_LOG,
    "clock": CLOCK,
    "meter": METRICS,
    "report": REPORT,
    "telemetry": TELEMETRY,
}
"""What a laptop mirrors of an attempt beside the ranks' outputs: any of these files may never appear."""
SCRIPTS_OWN = ("report",)
"""Those that a script may write itself: one that cuts or rewrites its file harms nothing but what it says there."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
_HASH = re.compile(r"[0-9a-f]{64}\Z")


def default_root() -> str:
    """Return the state root of an account that configured none."""
    return os.path.join(os.path.expanduser("~"), ".local", "state", "remote-train")


def state_root(configured: Optional[str]) -> str:
    """Return the state root as an absolute path."""
    return os.path.abspath(os.path.expanduser(configured)) if configured else default_root()


def is_run_id(text: object) -> bool:
    """Tell whether `text` may name a run, and so a folder."""
    return isinstance(text, str) and bool(_NAME.match(text))


def is_hash(text: object) -> bool:
    """Tell whether `text` is a SHA-256 in lower-case hexadecimal."""
    return isinstance(text, str) and bool(_HASH.match(text))


def blob_path(root: str, sha256: str) -> str:
    """Return where the contents with this hash lie."""
    return os.path.join(root, BLOBS, sha256[:2], sha256[2:])


def incoming_path(root: str, sha256: str) -> str:
    """Return where contents with this hash lie until they are whole."""
    return os.path.join(root, BLOBS, INCOMING, sha256)


def data_path(root: str, data_id: str) -> str:
    """Return where the data folder with this id lies."""
    return os.path.join(root, DATA, data_id)


def env_path(root: str, key: str) -> str:
    """Return where the environment with this key lies."""
    return os.path.join(root, ENVS, key)


def uv_path(root: str, sha256: str) -> str:
    """Return where a laptop's own uv lies."""
    return os.path.join(root, UV, sha256, "uv")


def package_path(root: str, package_id: str) -> str:
    """Return where the manifest with this id lies."""
    return os.path.join(root, PACKAGES, package_id + ".json")


def run_dir(root: str, run: str) -> str:
    """Return the folder of a run."""
    return os.path.join(root, RUNS, run)


def attempt_dir(root: str, run: str, attempt: int) -> str:
    """Return the folder of one attempt of a run."""
    return os.path.join(root, RUNS, run, ATTEMPTS, str(attempt))


def rank_log(attempt: str, rank: int) -> str:
    """Return the output file of a rank, given the attempt's folder."""
    return os.path.join(attempt, RANKS, "%d.log" % rank)


def output_path(attempt: str, name: str) -> str:
    """Return the file of an output, given the attempt's folder: a rank's number, or one of OTHERS; raise ValueError."""
    return os.path.join(attempt, OTHERS[name]) if name in OTHERS else rank_log(attempt, int(name))
