"""A training that saves in four ways at once, over and over, and says of each version when all of it was written.

In place, as nanoGPT does; under a temporary name, then renamed; numbered, the oldest removed; and folders of several
files as transformers writes them. Writing takes its time: what is half there can be met half there.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import sys
import threading
import time

import torch

from remote_train import report

SIZE = 20_000


def make(step):
    """Return the bytes of a checkpoint of this step; all have one size."""
    stream = io.BytesIO()
    torch.save({"step": torch.tensor(step), "model": {"w": torch.full((SIZE,), float(step))}}, stream)
    return stream.getvalue()


def make_safetensors(step):
    """Return the model alone in the other format."""
    data = torch.full((SIZE,), float(step)).numpy().tobytes()
    entry = {"dtype": "F32", "shape": [SIZE], "data_offsets": [0, len(data)]}
    header = json.dumps({"__metadata__": {"step": str(step)}, "w": entry}).encode()
    return len(header).to_bytes(8, "little") + header + data


def write(chance, path, data):
    """Write in pieces, now and then with a long breath in the middle."""
    with open(path, "wb") as file:
        for place in range(0, len(data), 16_384):
            file.write(data[place : place + 16_384])
            file.flush()
            time.sleep(chance.choice([0, 0, 0, 0.02, 0.4]))


def say(path, data):
    with lock:
        print("whole", path, hashlib.sha256(data).hexdigest(), flush=True)


def save_in_place(chance, step):
    data = make(step)
    write(chance, "inplace/ckpt.pt", data)
    say("inplace/ckpt.pt", data)
    time.sleep(chance.uniform(0.3, 0.9))


def save_renamed(chance, step):
    data = make(step)
    write(chance, "renamed/ckpt.tmp", data)
    say("renamed/ckpt.pt", data)  # before: from the next moment on it can be met
    os.replace("renamed/ckpt.tmp", "renamed/ckpt.pt")
    time.sleep(chance.uniform(0, 0.3))


def save_numbered(chance, step):
    path = "rotating/step-%d.pt" % step
    torch.save({"step": torch.tensor(step), "model": {"w": torch.full((SIZE,), float(step))}}, path)
    with open(path, "rb") as file:
        say(path, file.read())
    with contextlib.suppress(FileNotFoundError):
        os.remove("rotating/step-%d.pt" % (step - 2))
    time.sleep(chance.uniform(0.2, 0.8))


def save_folder(chance, step):
    folder = "hf/checkpoint-%d" % step
    os.mkdir(folder)
    contents = {"model.safetensors": make_safetensors(step), "optimizer.pt": make(step)}
    contents["trainer_state.json"] = json.dumps({"global_step": step}).encode()
    for name, data in contents.items():
        write(chance, folder + "/" + name, data)
        say(folder + "/" + name, data)
    if step % 3:
        report.checkpoint(folder)
    shutil.rmtree("hf/checkpoint-%d" % (step - 2), ignore_errors=True)
    time.sleep(2.0)


def go_on(save, seed):
    chance = random.Random("%s %s" % (seed, save.__name__))
    step = 0
    while not os.path.exists("enough"):
        step += 1
        save(chance, step)


lock = threading.Lock()
for name in ("inplace", "renamed", "rotating", "hf"):
    os.mkdir(name)
threads = [
    threading.Thread(target=go_on, args=(save, sys.argv[1]))
    for save in (save_in_place, save_renamed, save_numbered, save_folder)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
