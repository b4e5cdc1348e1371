"""Whole processes with the real torch: forks, children, checkpoints, a package run by name, two ranks, a sudden end."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.meter.conftest import Training

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

# Run as `python -m pkg.train`: every step forks, saves or starts something, and the end is sudden.
BUSY = """
import json, os, subprocess, sys, warnings
import torch
from torch.utils.data import DataLoader

warnings.simplefilter("error")
before = set(sys.modules)


class Data(torch.utils.data.Dataset):
    def __len__(self): return 24
    def __getitem__(self, at): return torch.full((16,), float(at))


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))
    def forward(self, x): return self.inner(x)


CHILD = '''
import torch
net = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for _ in range(6):
    net(torch.ones(1, 2)).sum().backward(); optimizer.step()
'''

def main():
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    step = 0
    for context in ("fork", "spawn"):
        loader = DataLoader(Data(), batch_size=4, num_workers=1, multiprocessing_context=context)
        for batch in loader:
            loss = net(batch).square().mean()
            if step in (1, 2):
                torch.save(net, f"net{step}.pt")
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    child = os.fork()
    if child == 0:  # trains too, and ends as a process does
        for _ in range(300):
            net(torch.ones(4, 16)).sum().backward(); optimizer.step()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    subprocess.run([sys.executable, "-c", CHILD], check=True)
    added = sorted(set(sys.modules) - before)
    print(json.dumps(added))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
"""


def test_forks_children_checkpoints_and_a_sudden_end(training: Training) -> None:
    package = training.folder / "pkg"
    package.mkdir()
    (package / "train.py").write_text(textwrap.dedent(BUSY), "utf-8")
    with_us = training.run("-m", "pkg.train")
    assert with_us.stderr == ""
    added = {name for name in json.loads(with_us.stdout) if not name.startswith("_remote_train_meter")}
    assert not any(name.startswith("remote_train") for name in added)

    assert len({line["pid"] for line in training.lines("start")}) == 1  # neither the fork's nor the child's
    assert training.lines("off") == []
    (count,) = training.lines("count")
    assert count["flops"] == 2 * 4 * (2 * 16 * 8 + 3 * 8 * 2)
    assert training.lines("steps")[0]["steps"] == 4  # written before os._exit
    assert [line["step"] for line in training.lines("sample")][:4] == [2, 3, 4, 5]

    for step in (1, 2):  # saved while their calls were watched
        assert b"remote_train" not in (training.folder / f"net{step}.pt").read_bytes()


TWO_RANKS = """
import os, torch, torch.distributed as dist, torch.multiprocessing as mp

def train(rank):
    os.environ["RANK"] = str(rank)
    dist.init_process_group("gloo", init_method="file://" + os.path.abspath("rendezvous"), rank=rank, world_size=2)
    torch.manual_seed(0)
    net = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Linear(8, 2)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(8):
        net(torch.randn(4, 16)).square().mean().backward()
        optimizer.step(); optimizer.zero_grad()
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(train, nprocs=2)
"""


@pytest.mark.slow
def test_of_two_ranks_the_first_writes_and_counts_its_own_share(training: Training) -> None:
    (training.folder / "ddp.py").write_text(TWO_RANKS, "utf-8")
    ran = training.run("ddp.py")
    assert ran.returncode == 0, ran.stderr
    starts = training.lines("start")
    assert {(line["rank"], line["world"]) for line in starts} == {(0, 2)}
    (count,) = training.lines("count")
    assert count["flops"] == 2 * 4 * (2 * 16 * 8 + 3 * 8 * 2)
    assert count["parameters"] == 16 * 8 + 8 + 8 * 2 + 2
    assert training.lines("off") == []
