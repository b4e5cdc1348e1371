"""A training that saves in four ways at once, over and over, and says of each version when all of it was written.

In place, as nanoGPT does; under a temporary name, then renamed; numbered, the oldest removed; and folders of several
files as transformers writes them. Writing takes its time: what is half there can be met half there.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from remote_train import report

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 20_000
ENOUGH = Path("enough")


def fill(step: int) -> dict[str, object]:
    return {"step": torch.tensor(step), "model": {"w": torch.full((SIZE,), float(step))}}


def make_zip(step: int) -> bytes:
    """Return a checkpoint; those of all steps are of one size."""
    stream = io.BytesIO()
    torch.save(fill(step), stream)
    return stream.getvalue()


def make_safetensors(step: int) -> bytes:
    data = torch.full((SIZE,), float(step)).numpy().tobytes()
    entry = {"dtype": "F32", "shape": [SIZE], "data_offsets": [0, len(data)]}
    header = json.dumps({"__metadata__": {"step": str(step)}, "w": entry}).encode()
    return len(header).to_bytes(8, "little") + header + data


def write(chance: random.Random, path: Path, data: bytes) -> None:
    """Write in pieces, now and then with a long breath in the middle."""
    with path.open("wb") as file:
        for place in range(0, len(data), 16_384):
            file.write(data[place : place + 16_384])
            file.flush()
            time.sleep(chance.choice([0, 0, 0, 0.02, 0.4]))


def say(path: Path, data: bytes) -> None:
    with lock:
        print("whole", path, hashlib.sha256(data).hexdigest(), flush=True)


def save_in_place(chance: random.Random, step: int) -> None:
    data, path = make_zip(step), Path("inplace/ckpt.pt")
    write(chance, path, data)
    say(path, data)
    time.sleep(chance.uniform(0.3, 0.9))


def save_renamed(chance: random.Random, step: int) -> None:
    data, path, temporary = make_zip(step), Path("renamed/ckpt.pt"), Path("renamed/ckpt.tmp")
    write(chance, temporary, data)
    say(path, data)  # before: from the next moment on it can be met
    temporary.replace(path)
    time.sleep(chance.uniform(0, 0.3))


def save_numbered(chance: random.Random, step: int) -> None:
    path = Path(f"rotating/step-{step}.pt")
    torch.save(fill(step), path)
    say(path, path.read_bytes())
    Path(f"rotating/step-{step - 2}.pt").unlink(missing_ok=True)
    time.sleep(chance.uniform(0.2, 0.8))


def save_folder(chance: random.Random, step: int) -> None:
    folder = Path(f"hf/checkpoint-{step}")
    folder.mkdir()
    contents = {"model.safetensors": make_safetensors(step), "optimizer.pt": make_zip(step)}
    contents["trainer_state.json"] = json.dumps({"global_step": step}).encode()
    for name, data in contents.items():
        write(chance, folder / name, data)
        say(folder / name, data)
    if step % 3:
        report.checkpoint(folder)
    shutil.rmtree(f"hf/checkpoint-{step - 2}", ignore_errors=True)
    time.sleep(2.0)


def go_on(save: Callable[[random.Random, int], None], seed: str) -> None:
    chance = random.Random(f"{seed} {save.__name__}")
    step = 0
    while not ENOUGH.exists():
        step += 1
        save(chance, step)


lock = threading.Lock()
for name in ("inplace", "renamed", "rotating", "hf"):
    Path(name).mkdir()
threads = [
    threading.Thread(target=go_on, args=(save, sys.argv[1]))
    for save in (save_in_place, save_renamed, save_numbered, save_folder)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
