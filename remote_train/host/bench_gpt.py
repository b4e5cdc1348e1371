"""Train a small GPT for a few seconds and say how long a step takes. Run by the training's own Python, for `bench`.

One job of JSON on the first line of stdin, one marked line of JSON on stdout. It ends when its stdin does, which is its agent's
pipe: a laptop that goes away leaves no training behind. The model is nanoGPT's: pre-norm blocks, no biases, no dropout, the output
layer tied to the embedding, AdamW (fused on CUDA), eager. The tokens are drawn at random on the CPU from the job's seed, so that every
host trains on the same ones; float32 on a CPU, autocast elsewhere.
"""

import contextlib
import json
import os
import statistics
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Tuple

MARKER = "remote-train bench: "
WINDOW_SECONDS = 0.2
WARM_UPS = 4
"""Steps before the first that counts: kernels are chosen, memory is taken, the meter counts FLOPs."""
LEAST_STEPS = 2
TOKENS = 200_000
CAPABILITY_OF_BF16 = (8, 0)


def make_model(torch: Any, job: Dict[str, Any]) -> Any:  # noqa: ANN401  (torch)
    """Return the GPT that the job describes: tokens and targets in, loss out."""
    nn, functional = torch.nn, torch.nn.functional
    width, heads = job["width"], job["heads"]

    class Block(nn.Module):  # type: ignore[misc, name-defined]  # torch is a value here
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(2))
            self.qkv = nn.Linear(width, 3 * width, bias=False)
            self.out = nn.Linear(width, width, bias=False)
            self.up = nn.Linear(width, 4 * width, bias=False)
            self.down = nn.Linear(4 * width, width, bias=False)

        def forward(self, x: Any) -> Any:  # noqa: ANN401  (as above)
            batch, time_, _ = x.shape
            q, k, v = self.qkv(self.norms[0](x)).view(batch, time_, 3, heads, -1).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(batch, time_, width))
            return x + self.down(functional.gelu(self.up(self.norms[1](x))))

    class Model(nn.Module):  # type: ignore[misc, name-defined]  # as above
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(job["vocab"], width)
            self.positions = nn.Embedding(job["block"], width)
            self.blocks = nn.ModuleList(Block() for _ in range(job["layers"]))
            self.norm = nn.LayerNorm(width, bias=False)
            for parameter in self.parameters():
                if parameter.dim() == 2:
                    nn.init.normal_(parameter, std=0.02)

        def forward(self, inputs: Any, targets: Any) -> Any:  # noqa: ANN401  (as above)
            x = self.tokens(inputs) + self.positions.weight
            for block in self.blocks:
                x = block(x)
            logits = functional.linear(self.norm(x), self.tokens.weight)
            return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    return Model()


def make_batches(torch: Any, job: Dict[str, Any], device: Any) -> Iterator[Tuple[Any, Any]]:  # noqa: ANN401  (torch)
    """Yield inputs and targets without end, the same ones for one seed, sliced on the CPU as nanoGPT does."""
    generator = torch.Generator().manual_seed(job["seed"])
    data = torch.randint(job["vocab"], (TOKENS,), generator=generator)
    cuda = device.type == "cuda"
    while True:
        starts = torch.randint(TOKENS - job["block"] - 1, (job["batch"],), generator=generator).tolist()
        pair = [
            torch.stack([data[at + shift : at + shift + job["block"]] for at in starts]) for shift in (0, 1)
        ]
        yield tuple(rows.pin_memory().to(device, non_blocking=True) if cuda else rows for rows in pair)


def choose_dtype(torch: Any, device: Any) -> Any:  # noqa: ANN401  (torch)
    """Return what trainings usually compute in: float32 on a CPU, bfloat16 on a GPU, float16 on one before Ampere.

    Those say that they have bfloat16 and emulate it, many times slower.
    """
    if device.type != "cuda":
        return torch.float32
    newer = torch.cuda.get_device_capability(device) >= CAPABILITY_OF_BF16
    return torch.bfloat16 if newer else torch.float16


def make_step(torch: Any, job: Dict[str, Any], device: Any, dtype: Any) -> Tuple[Callable[[], Any], Any]:  # noqa: ANN401  (torch)
    """Return a function that takes one optimizer step and gives its loss, and the model."""
    torch.manual_seed(job["seed"])
    model = make_model(torch, job).to(device)
    cuda = device.type == "cuda"
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=cuda
    )
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    batches = make_batches(torch, job, device)

    def step() -> Any:  # noqa: ANN401  (a tensor)
        inputs, targets = next(batches)
        with torch.autocast(device.type, dtype) if cuda else contextlib.nullcontext():
            loss = model(inputs, targets)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step, model


def time_steps(step: Callable[[], Any], seconds: float) -> Tuple[List[float], int, List[float]]:
    """Return seconds per step of each window, the steps that were timed, and the losses at their ends.

    A window is one step, or as many as take WINDOW_SECONDS; reading its loss is what waits for the device. At least LEAST_STEPS.
    """
    began = last = time.perf_counter()
    losses = [float(step())]
    one = time.perf_counter() - last
    for _ in range(WARM_UPS - 1):
        if time.perf_counter() - began > seconds / 2:
            break
        last = time.perf_counter()
        float(step())
        one = time.perf_counter() - last
    size = max(1, int(WINDOW_SECONDS / max(one, 1e-9)))
    began, paces, steps = time.perf_counter(), [], 0
    while steps < LEAST_STEPS or time.perf_counter() - began < seconds:
        since = time.perf_counter()
        for _ in range(size - 1):
            step()
        losses.append(float(step()))
        paces.append((time.perf_counter() - since) / size)
        steps += size
    return paces, steps, losses


def train(job: Dict[str, Any]) -> Dict[str, Any]:
    """Train what the job describes and return its figures."""
    import torch  # noqa: PLC0415  (this module is read by Pythons without torch)

    torch.set_num_threads(job["threads"])
    torch.set_float32_matmul_precision(
        "high" if job["device"] == "cuda" else "highest"
    )  # TF32, as nanoGPT allows
    device = torch.device(job["device"])
    dtype = choose_dtype(torch, device)
    step, model = make_step(torch, job, device, dtype)
    paces, steps, losses = time_steps(step, job["seconds"])
    return {
        "step_seconds": statistics.median(paces),
        "steps": steps,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(dtype).split(".")[-1],
        "losses": [losses[0], losses[-1]],
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
    }


def leave_with_stdin() -> None:
    """End this process at the end of its stdin."""
    while os.read(0, 4096):
        pass
    os._exit(1)


def main() -> None:
    """Read the job, do it, and print the marked line."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 1)
        if not piece:
            return
        line += piece
    job: Dict[str, Any] = json.loads(line.decode("ascii"))
    threading.Thread(target=leave_with_stdin, daemon=True).start()
    if job["what"] == "peak":
        from remote_train.host import matmul_peak  # noqa: PLC0415  (the other job needs none of it)

        matmul_peak.main([job["device"], str(job["threads"]), *job["dtypes"]])
        return
    sys.stdout.write("\n%s%s\n" % (MARKER, json.dumps(train(job))))
