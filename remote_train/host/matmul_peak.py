"""Measure the matrix product peak of a device. Run by the training's own Python: DEVICE THREADS DTYPE...

Imports torch only inside `main`: Pythons without it read this file too. DEVICE is cpu or cuda[:N]; DTYPE is a torch
dtype, or tf32 (float32 with TF32 allowed). Prints one marked line of JSON with FLOP/s for each dtype, None for
one that this device cannot do, the bandwidth of its memory, and what one small operation costs. Best of many, not
the mean: the peak is what the device can do at its best.
"""

import json
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

MARKER = "remote-train peak: "
SHAPES = {"cpu": (2048, 1024, 512), "cuda": (8192, 4096, 2048)}
WARM_UPS = 3
LEAST_SECONDS = 0.5
MOST_SECONDS = 2.0

COPIED = {"cpu": 256 << 20, "cuda": 512 << 20}
"""Bytes of the tensor whose copy tells the bandwidth: more than caches hold, of servers too."""
COPY_SECONDS = 0.4
CHAIN = 50
CHAINS = 40

# The part of the time that warm-ups and one timed product may take at the shape chosen.
_SHARE = 0.5


def flops(shape: int) -> float:
    """Return the operations of a product of square matrices: a multiplication and an addition each."""
    return 2.0 * float(shape) ** 3


def choose_shape(shapes: Tuple[int, ...], smallest_seconds: float) -> int:
    """Return the largest shape that leaves time to repeat, given how long one product of the smallest took."""
    for shape in shapes:
        predicted = smallest_seconds * flops(shape) / flops(shapes[-1])
        if predicted * (WARM_UPS + 1) <= MOST_SECONDS * _SHARE:
            return shape
    return shapes[-1]


def best_seconds(once: Callable[[], float]) -> float:
    """Return the fastest of many runs after the warm-ups; `once` returns the seconds of one run."""
    began = time.perf_counter()
    for _ in range(WARM_UPS):
        once()
    warm = time.perf_counter()
    best = once()
    while time.perf_counter() - warm < LEAST_SECONDS and time.perf_counter() - began < MOST_SECONDS:
        best = min(best, once())
    return best


def make_product(torch: Any, device: str, dtype: Any, shape: int) -> Callable[[], float]:  # noqa: ANN401  (torch)
    """Return a function that multiplies two matrices once and returns the seconds it took."""
    # Uniform numbers: an empty tensor may hold denormals, which are slow, and zeros draw less power.
    left, right, out = (torch.rand(shape, shape, device=device).to(dtype) for _ in range(3))

    def on_cpu() -> float:
        began = time.perf_counter()
        torch.mm(left, right, out=out)
        return time.perf_counter() - began

    def on_cuda() -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        torch.mm(left, right, out=out)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000.0

    return on_cuda if device.startswith("cuda") else on_cpu


def measure(torch: Any, device: str, name: str) -> Tuple[Optional[float], Optional[int]]:  # noqa: ANN401  (torch)
    """Return FLOP/s and the shape they were reached with; None and None for a dtype that does not work here."""
    torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    dtype = torch.float32 if name == "tf32" else getattr(torch, name, None)
    shapes = SHAPES[device.partition(":")[0]]
    if dtype is None:
        return None, None
    try:
        smallest = make_product(torch, device, dtype, shapes[-1])
        smallest()  # the first one loads libraries and starts threads
        shape = choose_shape(shapes, smallest())
        return flops(shape) / best_seconds(make_product(torch, device, dtype, shape)), shape
    except (RuntimeError, TypeError):  # what torch raises for want of support or memory
        return None, None


def measure_bandwidth(torch: Any, device: str) -> Optional[float]:  # noqa: ANN401  (torch)
    """Return the bytes/s of a copy from memory to memory, read and written ones counted; None without room for it."""
    size = COPIED[device.partition(":")[0]]
    try:
        source = torch.ones(size // 4, device=device)
        target = torch.empty_like(source)
        wait(torch, device)

        def once() -> float:
            began = time.perf_counter()
            target.copy_(source)
            wait(torch, device)
            return time.perf_counter() - began

        first, began = once(), time.perf_counter()  # the first one has the pages made
        best = first
        while time.perf_counter() - began < COPY_SECONDS:
            best = min(best, once())
    except (RuntimeError, TypeError):
        return None
    return 2.0 * size / best


def measure_dispatch(torch: Any, device: str) -> Optional[float]:  # noqa: ANN401  (torch)
    """Return the seconds that one operation on one number takes, half of them forward and half in backward.

    All of it is what torch does around an operation: of a step of K operations, K times that is the least.
    """
    try:
        start = torch.ones(1, device=device, requires_grad=True)
        factor = torch.ones(1, device=device)

        def once() -> float:
            began = time.perf_counter()
            value = start
            for _ in range(CHAIN):
                value = value * factor
            value.backward()
            wait(torch, device)
            return time.perf_counter() - began

        return min(once() for _ in range(CHAINS)) / (2 * CHAIN)
    except (RuntimeError, TypeError):
        return None


def wait(torch: Any, device: str) -> None:  # noqa: ANN401  (torch)
    """Return when the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def main(arguments: List[str]) -> None:
    """Measure every dtype and print the marked line."""
    import torch  # noqa: PLC0415  (this module is read by Pythons without torch)

    device, threads = arguments[0], int(arguments[1])
    torch.set_num_threads(threads)
    answer: Dict[str, Any] = {"threads": threads, "torch": str(torch.__version__), "device": device}
    results = {name: measure(torch, device, name) for name in arguments[2:]}
    answer.update({name: peak for name, (peak, _) in results.items()})
    answer["shapes"] = {name: shape for name, (_, shape) in results.items()}
    answer["bandwidth"] = measure_bandwidth(torch, device)
    answer["dispatch"] = measure_dispatch(torch, device)
    answer["shape"] = max([shape for _, shape in results.values() if shape], default=None)
    sys.stdout.write("\n%s%s\n" % (MARKER, json.dumps(answer)))


if __name__ == "__main__":
    main(sys.argv[1:])
