"""The model of a checkpoint alone, as a safetensors file beside the run's own: the training's Python makes it, not ours.

It lies in attempts/K/weights/ under a name made of the source's path and identity, so that it is made once.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from fnmatch import fnmatch

from remote_train.host import layout, life
from remote_train.host.commands import find_marked, run_script
from remote_train.host.disk import name_place
from remote_train.host.launcher import make_environment
from remote_train.host.model_files import identify
from remote_train.host.model_weights import DTYPES, MARKER
from remote_train.host.start import Refusal

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional

    from remote_train.host.commands import Outcome
    from remote_train.host.operations import Operations

TRIES = 3
YOUNG_SECONDS = 5.0
MODEL_FILES = ("*.safetensors", "pytorch_model*.bin", "model*.bin", "model*.pt", "model*.pth")
"""Which files of a folder are its model: those that the first of these finds."""


def longest_seconds(size: int) -> float:
    """Return how long it may take to convert this many bytes."""
    return 300.0 + size / 20e6


def convert_weights(operations: Operations, request: Dict[str, Any]) -> None:
    """Make the weights of one checkpoint, unless they are there; answer with their `name`, `size` and `mtime_ns`."""
    if sys.byteorder != "little":
        raise Refusal("host-unfit", "safetensors are made on little-endian machines only")
    folder = operations.attempt_dir(request)
    state = operations.read(request)
    if state.get("attempt") is None:
        raise Refusal("no-such-file", "%s has made nothing here" % request["run"])
    if request["dtype"] is not None and request["dtype"] not in DTYPES:
        raise ValueError("not a dtype: %r" % (request["dtype"],))
    path, dtype, plan = str(request["path"]), request["dtype"], state["attempt"]["plan"]
    still = state["state"] in life.FINAL
    operations.aside(
        request["id"], lambda: run_until_still(lambda: make_job(folder, path, dtype, still=still), plan)
    )


def run_until_still(
    make: Callable[[], Dict[str, Any]], plan: Dict[str, Any], tries: int = TRIES
) -> Dict[str, Any]:
    """Do a job, and make it anew when somebody writes to the checkpoint meanwhile; importing torch is pause enough."""
    job = make()
    try:
        return run_job(job, plan)
    except Refusal as refusal:
        if tries == 1 or not (refusal.kind == "changed" or _is_young(job)):
            raise
    return run_until_still(make, plan, tries - 1)


def _is_young(job: Dict[str, Any]) -> bool:
    """Tell whether somebody may be in the middle of writing it."""
    newest: int = max(item[2] for item in job["identity"])
    return time.time() - newest / 1e9 < YOUNG_SECONDS


def make_job(folder: str, path: str, dtype: Optional[str], *, still: bool) -> Dict[str, Any]:
    """Return what the script is told; raise Refusal for a place without a model."""
    sources = choose_sources(_find_unit(os.path.join(folder, layout.CODE), path), path)
    identity = identify(sources)
    size = sum(item[1] for item in identity)
    version = json.dumps([identity, dtype, [os.path.basename(source) for source in sources]])
    name = "%s-%s.safetensors" % (_hash(path), _hash(version))
    return {
        "files": sources,
        "identity": identity,
        "source": path,
        "dtype": dtype,
        "target": os.path.join(folder, layout.WEIGHTS, name),
        "still": still,
        "spare": 0 if still else size,
        "size": size,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def _find_unit(code: str, path: str) -> str:
    code = os.path.realpath(code)
    place = os.path.realpath(os.path.join(code, path))
    if os.path.commonpath([code, place]) != code or place == code or not os.path.exists(place):
        raise Refusal("no-such-file", "no such checkpoint in this run: %s" % path)
    return place


def choose_sources(place: str, path: str) -> List[str]:
    """Return the files that hold the model: a file itself, or the model's files of a folder."""
    if os.path.isfile(place):
        return [place]
    names = sorted(name for name in os.listdir(place) if os.path.isfile(os.path.join(place, name)))
    if ".metadata" in names:
        raise Refusal("pull-incomplete", "%s is a distributed checkpoint, which only comes whole" % path)
    for glob in MODEL_FILES:
        found = [os.path.join(place, name) for name in names if fnmatch(name, glob)]
        if found:
            return found
    raise Refusal("pull-incomplete", "%s has no file of a model: %s" % (path, ", ".join(names[:20])))


def run_job(job: Dict[str, Any], plan: Dict[str, Any]) -> Dict[str, Any]:
    """Have the training's Python do it, for as long as we live; raise Refusal or OSError."""
    if not os.path.exists(job["target"]):
        os.makedirs(os.path.dirname(job["target"]), mode=0o700, exist_ok=True)
        _check_outcome(job, _run_script(job, plan))
    status = os.stat(job["target"])
    name = os.path.basename(job["target"])
    return {"name": name, "size": status.st_size, "mtime_ns": status.st_mtime_ns, "source": job["size"]}


def _run_script(job: Dict[str, Any], plan: Dict[str, Any]) -> Outcome:
    environment = dict(make_environment(dict(os.environ), plan, {}), CUDA_VISIBLE_DEVICES="")
    return run_script("model_weights", job, str(plan["python"]), environment, longest_seconds(job["size"]))


def _check_outcome(job: Dict[str, Any], outcome: Outcome) -> None:
    words = find_marked(outcome.output, MARKER)
    answer = json.loads(words) if words is not None else {}
    if "errno" in answer:
        number = answer["errno"] or 0
        raise name_place(
            OSError(number, os.strerror(number)), answer["path"] or job["target"], answer["need"]
        )
    if "kind" in answer:
        raise Refusal(answer["kind"], "%s: %s" % (job["source"], answer["message"]))
    if "ok" not in answer:
        why = outcome.problem or "it said nothing"
        raise Refusal("host-unfit", "%s could not be converted: %s" % (job["source"], why))
