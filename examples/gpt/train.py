"""Train a small GPT on bytes of Python source: one file, plain PyTorch (2.4 or later), one CPU to many GPUs.

One CPU, about half a minute on two cores:      python train.py --device cpu
One GPU, a model worth its name:                python train.py --width 384 --layers 6 --heads 6 \
                                                  --block-size 256 --batch-size 64 --steps 1000 --lr 1e-3
Two processes, on CPUs (gloo) or GPUs (nccl):   torchrun --standalone --nproc-per-node 2 train.py
On whatever host remote-train finds:            remote-train run train.py
Go on where out/ckpt.pt ends:                   python train.py --resume

The text is Python's own standard library, which is on every machine that can run this; --text FILE takes another.
A token is a byte. The loss starts near ln(256) = 5.55 and falls below 3 in the sixty steps of the default run.

Every random choice is a function of --seed, the step and the rank, so a resumed run repeats an uninterrupted one
(bit for bit on a CPU), and two processes see the same batches as one with --accumulation 2. When it resumes, the model's
shape comes from the checkpoint; everything else comes from the command line. The schedule ends at --steps, so another
number of steps is another run. The script prints no MFU; the launcher works it out from what is reported.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence  # noqa: TC003  (one file, one block of imports)
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

try:
    from remote_train import report
except ImportError:  # by itself, on a machine without remote-train
    report = None  # type: ignore[assignment]  # a module, or nothing

VOCABULARY = 256
DTYPES = ("auto", "float32", "bfloat16", "float16")
SHAPE = ("layers", "heads", "width", "block_size")


def option(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:  # noqa: A002, ANN401 - argparse's word; dataclasses.field is typed so too
    """Declare a field of Config as a command line option."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Config:
    """Everything that can be set, with defaults that finish in half a minute on two CPU cores."""

    steps: int = option(60, "optimizer steps in all, those of a resumed checkpoint included")
    batch_size: int = option(32, "sequences in one forward pass of one process")
    block_size: int = option(128, "tokens in a sequence")
    accumulation: int = option(1, "forward passes of each process in one step")
    layers: int = option(4, "transformer blocks")
    heads: int = option(4, "attention heads of a block")
    width: int = option(128, "size of the residual stream")
    lr: float = option(3e-3, "highest learning rate; the cosine ends at a tenth of it")
    warmup: int = option(10, "steps until the learning rate is reached")
    seed: int = option(1, "of the weights and the batches")
    log_every: int = option(5, "steps between two lines")
    eval_every: int = option(20, "steps between two validation losses")
    checkpoint_every: int = option(30, "steps between two checkpoints")
    device: str = option("auto", "auto takes CUDA where there is a device", ("auto", "cpu", "cuda"))
    dtype: str = option("auto", "auto: float32 on CPUs, on GPUs bfloat16, or float16 on older ones", DTYPES)
    compile: bool = option(default=False, help="torch.compile the model: about a minute, for runs that last")
    text: str = option("", "a file to learn, in place of the standard library's sources")
    out: str = option("out", "folder of ckpt.pt")
    resume: bool = option(default=False, help="go on from OUT/ckpt.pt")


def parse_config(argv: Sequence[str]) -> Config:
    """Read --name value and --name=value; --help lists what there is."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    for entry in fields(Config):
        flag, kind = "--" + entry.name.replace("_", "-"), type(entry.default)
        about = entry.metadata["help"] + f" (default: {entry.default!r})"
        value = {"type": kind, "default": entry.default, "choices": entry.metadata["choices"]}
        parser.add_argument(flag, help=about, **({"action": "store_true"} if kind is bool else value))
    config = Config(**vars(parser.parse_args(argv)))
    if bad := [name for name, value in vars(config).items() if type(value) is int and value < 1]:
        parser.error(f"must be at least 1: {', '.join(bad)}")
    if config.width % config.heads:
        parser.error(f"--width {config.width} is not a multiple of --heads {config.heads}")
    return config


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp_up = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, width) to the same shape."""
        batch, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))
        hidden = nn.functional.gelu(self.mlp_up(self.mlp_norm(x)))
        return x + self.mlp_out(hidden)  # type: ignore[no-any-return]  # what a module returns is not typed


class GPT(nn.Module):
    """Bytes in, loss out; the output layer is the embedding's own matrix."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, config.width)
        self.positions = nn.Embedding(config.block_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # Each block adds to the residual stream twice: the scale keeps its variance through the depth.
                scale = math.sqrt(2 * config.layers) if name.endswith("out.weight") else 1
                nn.init.normal_(parameter, std=0.02 / scale)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Give the mean cross-entropy in nats; both arguments are (batch, time) of bytes."""
        x = self.tokens(inputs) + self.positions.weight[: inputs.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = nn.functional.linear(self.norm(x), self.tokens.weight)
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def count_flops_per_token(model: GPT, config: Config) -> int:
    """Count 6N + 12LHQT, forward and backward (PaLM, appendix B): N without the positions."""
    numbers = sum(p.numel() for p in model.parameters()) - model.positions.weight.numel()
    return 6 * numbers + 12 * config.layers * config.width * config.block_size


def read_text(config: Config) -> tuple[Tensor, Tensor]:
    """Read the bytes to learn and the last tenth of them, which is kept for validation."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = [Path(config.text)] if config.text else sorted(folder.glob("*.py"))
    text = b"".join(path.read_bytes() for path in files)[: None if config.text else 4_000_000]
    cut = len(text) * 9 // 10
    if len(text) - cut <= config.block_size:
        sys.exit(f"too little text: {len(text)} bytes; give a longer one with --text FILE")
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return data[:cut], data[cut:]


def make_batches(data: Tensor, config: Config, seed: int, turns: range) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and targets of some of the batches, those numbered `turns`, that `seed` stands for."""
    generator = torch.Generator().manual_seed(seed)
    size = (turns.stop, config.batch_size, 1)
    starts = torch.randint(len(data) - config.block_size, size, generator=generator)
    for turn in turns:
        rows = data[starts[turn] + torch.arange(config.block_size + 1)].long()
        yield rows[:, :-1], rows[:, 1:]


@dataclass(frozen=True)
class Place:
    """Where this process trains: its device, how it computes there, and which of how many it is."""

    device: torch.device
    dtype: torch.dtype
    rank: int
    world: int

    def say(self, text: str) -> None:
        """Print a line at once, from the first process only."""
        if self.rank == 0:
            print(text, flush=True)


def choose_place(config: Config) -> Place:
    """Settle on device and dtype; the rank is torchrun's, or this is the only process."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        best, device = "float32", torch.device("cpu")
    else:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if device.index >= torch.cuda.device_count():
            sys.exit(f"no {device} here: PyTorch sees {torch.cuda.device_count()}; --device cpu needs none")
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32
        # GPUs before capability 8 say that they have bfloat16 and emulate it, many times slower than float16.
        best = "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    return Place(device, getattr(torch, best if config.dtype == "auto" else config.dtype), rank, world)


def make_optimizer(model: GPT, config: Config) -> torch.optim.AdamW:
    """Make AdamW, fused, decaying matrices only."""
    parameters = list(model.parameters())
    matrices, vectors = [p for p in parameters if p.dim() >= 2], [p for p in parameters if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95), fused=True)


def compute_lr(step: int, config: Config) -> float:
    """Compute the learning rate of a step, counted from 1: a line up, then half a cosine to a tenth."""
    if step <= config.warmup:
        return config.lr * step / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (0.55 + 0.45 * math.cos(math.pi * min(1.0, done)))


class Trainer:
    """A model, its optimizer and the data, in one process of the run."""

    def __init__(self, config: Config, place: Place) -> None:
        self.config, self.place, self.step = config, place, 0
        self.train_data, self.val_data = read_text(config)
        torch.manual_seed(config.seed)
        self.raw = GPT(config).to(place.device)
        self.optimizer = make_optimizer(self.raw, config)
        # float16 loses small gradients unless the loss is scaled up first; elsewhere this does nothing.
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=place.dtype == torch.float16)
        if config.compile:
            self.raw.compile()
        self.ddp = DistributedDataParallel(self.raw) if place.world > 1 else None
        self.parts: dict[str, Any] = {"model": self.raw, "optimizer": self.optimizer, "scaler": self.scaler}

    def compute_loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Run the model forward in the run's dtype."""
        device, dtype = self.place.device, self.place.dtype
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return model(inputs.to(device), targets.to(device))  # type: ignore[no-any-return]  # as above

    def run_step(self) -> Tensor:
        """Take one optimizer step; give this process's mean loss, which nobody has waited for yet."""
        self.step += 1
        config, place = self.config, self.place
        for group in self.optimizer.param_groups:
            group["lr"] = compute_lr(self.step, config)
        # Every process takes each WORLD-th batch of the step: which ones there are does not depend on their number.
        seed = config.seed * 1_000_003 + self.step
        turns = range(place.rank, config.accumulation * place.world, place.world)
        torch.manual_seed(seed * place.world + place.rank)  # for dropout, should you add some
        total = torch.zeros((), device=place.device)
        batches = make_batches(self.train_data, config, seed, turns)
        for number, (inputs, targets) in enumerate(batches, start=1):
            # Gradients cross between the processes once a step, with the last of its batches.
            hold = self.ddp.no_sync if self.ddp and number < config.accumulation else contextlib.nullcontext
            with hold():
                loss = self.compute_loss(self.ddp or self.raw, inputs, targets) / config.accumulation
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # PyTorch does not type it
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.raw.parameters(), max_norm=1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    @torch.no_grad()
    def evaluate(self) -> float:
        """Give the mean loss of the same few validation batches every time."""
        batches = make_batches(self.val_data, self.config, self.config.seed, range(4))
        losses = [self.compute_loss(self.raw, inputs, targets) for inputs, targets in batches]
        return torch.stack(losses).mean().item()

    def save(self, path: Path) -> None:
        """Write a checkpoint; at PATH there is at every moment the old one or the new one, never a part."""
        states = {name: part.state_dict() for name, part in self.parts.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("wb") as file:
            torch.save({"step": self.step, "config": asdict(self.config), **states}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def train(self, path: Path) -> None:
        """Run the steps that are left, with a line, an evaluation and a checkpoint whenever they are due."""
        config, place = self.config, self.place
        mine = config.batch_size * config.block_size * config.accumulation
        tokens, per_token = mine * place.world, count_flops_per_token(self.raw, config)
        place.say(f"tokens per step: {tokens}")
        first, last, since, stop = self.step + 1, self.step, time.perf_counter(), False
        while self.step < config.steps and not stop:
            loss = self.run_step()
            if report is not None:
                report.step(self.step, loss=loss, tokens=mine, flops=mine * per_token)
                stop = place.world == 1 and report.should_stop()  # several would have to agree on a step
            every = (config.log_every, config.eval_every, config.checkpoint_every)
            log, evaluate, save = (self.step % n == 0 or self.step == config.steps for n in every)
            if not (log or evaluate or save or stop or self.step == first):
                continue
            if place.world > 1:
                dist.all_reduce(loss)
            mean = loss.item() / place.world  # waits for the device
            seconds = (time.perf_counter() - since) / (self.step - last)
            pace = f"{seconds * 1e3:.1f} ms | {tokens / seconds:,.0f} tok/s"
            place.say(f"step {self.step}/{config.steps} | loss {mean:.4f} | {pace}")
            if evaluate and place.rank == 0:
                place.say(f"eval step {self.step}: val loss {self.evaluate():.4f}")
            if (save or stop) and place.rank == 0:
                self.save(path)
                if report is not None:
                    report.checkpoint(path)
                place.say(f"saved {path} (step {self.step})")
            last, since = self.step, time.perf_counter()


def run(config: Config, place: Place) -> None:
    """Train from the beginning, or from the checkpoint, to the end."""
    path, checkpoint = Path(config.out, "ckpt.pt"), None
    if config.resume:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        config = replace(config, **{name: checkpoint["config"][name] for name in SHAPE})
    trainer = Trainer(config, place)
    if checkpoint:
        trainer.step = checkpoint["step"]
        for name, part in trainer.parts.items():
            part.load_state_dict(checkpoint[name])
        place.say(f"resumed {path} (step {trainer.step})")
    kind, dtype = place.device.type, str(place.dtype).split(".")[-1]
    place.say(f"device: {kind}\ndtype: {dtype}\nworld size: {place.world}")
    place.say(f"parameters: {sum(p.numel() for p in trainer.raw.parameters()):,}")
    place.say(f"flops per token: {count_flops_per_token(trainer.raw, config)}")
    trainer.train(path)


def main() -> None:
    """Join the other processes, if there are any, train, and leave them in order."""
    config = parse_config(sys.argv[1:])
    place = choose_place(config)
    cuda = place.device.type == "cuda"
    if place.world > 1:
        dist.init_process_group("nccl" if cuda else "gloo", device_id=place.device if cuda else None)
    run(config, place)
    if place.world > 1:
        dist.destroy_process_group()
        # Threads of gloo may abort a process that is done while Python shuts down (PyTorch issue 190489): do without.
        os._exit(0)


if __name__ == "__main__":
    main()
