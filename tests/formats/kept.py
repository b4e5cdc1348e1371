"""What a version left on a host and on a laptop, as one document; and how to make the next one.

    python -m tests.formats.kept 2

trains three short runs with this version (one done, one failed under torchrun, one whose supervisor was killed) and
keeps what they left as `tests/formats/data/2.json`. Do this when `layout.FORMAT` or `records.RUN_FORMAT` changes,
with the last version that writes the old format, and never change a document that is there.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.e2e.machines import Laptop, kill_leftovers, make_laptop, poll, write_project

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DATA = Path(__file__).parent / "data"
HOST_PARTS = ("runs", "blobs", "packages", "peaks")
LEFT_OUT = ("reserve", "__pycache__")
"""64 KiB of zeros, and what Python writes for itself."""
BOOT = "00000000-0000-4000-8000-000000000000"

DONE = """
import os, sys, time
rank = os.environ.get("RANK", "0")
print("rank", rank, "of a run whose records are kept for later versions", flush=True)
if rank == "0":
    for step in range(1, 6):
        print(f"step {step}/5 | loss {5 - step / 2:.4f} | {20 + step:.1f} ms | {100 * step} tok/s", flush=True)
        time.sleep(0.05)
    os.makedirs("out", exist_ok=True)
    open("out/ckpt.pt", "wb").write(b"a checkpoint of format 1\\n")
if "fail" in sys.argv and rank == "1":
    sys.exit(3)
"""
SLEEPING = 'import time\nprint("up", flush=True); time.sleep(600)\n'


def make_places(home: Path, project: Path, venv: Path) -> dict[str, str]:
    """Return what stands in a document for the paths of one machine, the longest path first."""
    places = {"@STATE@": home / ".local" / "state" / "remote-train", "@PROJECT@": project, "@VENV@": venv}
    return {name: str(path) for name, path in sorted(places.items(), key=lambda item: -len(str(item[1])))}


def capture(home: Path, project: Path, venv: Path) -> dict[str, Any]:
    """Return everything that the runs of a project left, without the machine they ran on."""
    places = make_places(home, project, venv)
    state = home / ".local" / "state" / "remote-train"
    index = home / "state" / "remote-train" / "client" / "index"
    host = {name: item for part in HOST_PARTS for name, item in _read_all(state, state / part, places)}
    laptop = dict(_read_all(project, project / "runs", places))
    return {"host": host, "laptop": laptop, "index": dict(_read_all(index, index, places))}


def _read_all(top: Path, folder: Path, places: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(folder.rglob("*")):
        if set(path.parts) & set(LEFT_OUT):
            continue
        if path.is_file():
            yield str(path.relative_to(top)), _read_one(path, places)
        elif not any(path.iterdir()):
            yield str(path.relative_to(top)), {"folder": True}


def _read_one(path: Path, places: Mapping[str, str]) -> dict[str, Any]:
    data = path.read_bytes()
    facts: dict[str, Any] = {"mtime_ns": path.stat().st_mtime_ns}
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return {**facts, "base64": base64.b64encode(data).decode()}
    for name, place in places.items():
        text = text.replace(place, name)
    if path.name == "attempt.json":
        text = text.replace(json.loads(text)["boot_id"], BOOT)
    return {**facts, "text": text}


def restore(document: Mapping[str, Any], home: Path, project: Path, venv: Path) -> None:
    """Write what was captured, as if it had happened on this machine."""
    places = make_places(home, project, venv)
    tops = {
        "host": home / ".local" / "state" / "remote-train",
        "laptop": project,
        "index": home / "state" / "remote-train" / "client" / "index",
    }
    for part, top in tops.items():
        for name, facts in document[part].items():
            _write_one(top / name, facts, places)
    for name in HOST_PARTS:
        (tops["host"] / name).mkdir(exist_ok=True)
    tops["host"].chmod(0o700)


def _write_one(path: Path, facts: Mapping[str, Any], places: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if "folder" in facts:
        path.mkdir()
        return
    if "base64" in facts:
        path.write_bytes(base64.b64decode(facts["base64"]))
    else:
        text = facts["text"]
        for name, place in places.items():
            text = text.replace(name, place)
        path.write_text(text)
    os.utime(path, ns=(facts["mtime_ns"], facts["mtime_ns"]))


def make_runs(laptop: Laptop, project: Path) -> None:
    """Train the three runs."""
    write_project(project, {"ok.py": DONE, "sleep.py": SLEEPING})
    laptop.ok(project, "run", "--local", "--name", "done-1", "ok.py")
    laptop.type(
        project, "run", "--local", "--nproc-per-node", "2", "--name", "failed-1", "ok.py", "fail"
    ).expect(1)
    laptop.ok(project, "run", "--local", "-d", "--name", "lost-1", "sleep.py")
    record = laptop.attempt("lost-1") / "attempt.json"
    poll(lambda: json.loads(record.read_text())["phase"] == "running", "it to run")
    os.kill(json.loads(record.read_text())["pid"], signal.SIGKILL)
    kill_leftovers(laptop.root)
    laptop.type(project, "ps")


def main() -> None:
    """Keep what this version leaves."""
    with tempfile.TemporaryDirectory() as folder:
        laptop = make_laptop(Path(folder).resolve() / "laptop")
        project = laptop.home / "proj"
        make_runs(laptop, project)
        document = capture(laptop.home, project, Path(sys.prefix))
    write_document(DATA / f"{sys.argv[1]}.json", document)


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a new document; one that is there is never changed."""
    with path.open("x", encoding="ascii") as file:
        file.write(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
