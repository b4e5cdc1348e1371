"""What `bench` trains on every host, and from what a host measured to the figures of the table. Pure.

The models are those that the product's first question was about: nanoGPT's tiny one (its README's, for a CPU) and its baby one. The baby
has that small batch too, so that a laptop manages it: its figures are not those of nanoGPT's own batch of 64.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from remote_train.metrics.peaks import Peak

SEED = 1337
AGREES = 0.01
"""How far the meter's count may be from the closed form."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model and its training; `iterations` are those of the time that is estimated, `seconds` how long it is trained."""

    name: str
    layers: int
    heads: int
    width: int
    block: int
    batch: int
    iterations: int
    seconds: float
    vocab: int = 65

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.batch * self.block

    def make_job(self) -> dict[str, Any]:
        """Return what the host is told."""
        return {**asdict(self), "seed": SEED}

    def compute_flops(self, parameters: int) -> float:
        """Return the FLOPs of one step: (6N + 12LHQT) x tokens, N without the positions (PaLM, appendix B; nanoGPT's own)."""
        counted = parameters - self.block * self.width
        return float(6 * counted + 12 * self.layers * self.width * self.block) * self.tokens


MODELS = (
    Model("tiny", layers=4, heads=4, width=128, block=64, batch=12, iterations=2000, seconds=8.0),
    Model("baby", layers=6, heads=6, width=384, block=256, batch=12, iterations=5000, seconds=15.0),
)


@dataclass(frozen=True, slots=True)
class Metered:
    """What the meter's lines say of one training; None where there were none."""

    flops: float | None = None
    how: str | None = None
    bottleneck: str | None = None


def make_model_row(
    model: Model, figures: Mapping[str, Any], metered: Metered, peak: Peak | None
) -> dict[str, Any]:
    """Return one model's figures; FLOPs are the meter's while they agree with the closed form, else that."""
    seconds = float(figures["step_seconds"])
    closed = model.compute_flops(figures["parameters"])
    agrees = metered.flops is not None and abs(metered.flops / closed - 1) <= AGREES
    flops = metered.flops if metered.flops is not None and agrees else closed
    return {
        "model": model.name,
        "layers": model.layers,
        "heads": model.heads,
        "width": model.width,
        "block": model.block,
        "batch": model.batch,
        "parameters": figures["parameters"],
        "dtype": figures["dtype"],
        "steps": figures["steps"],
        "step_seconds": seconds,
        "tokens_per_second": model.tokens / seconds,
        "flops_per_step": flops,
        "flops_source": f"meter, {metered.how}" if agrees else "6N + 12LHQT",
        "flops_metered": metered.flops,
        "flops_closed_form": closed,
        "flops_per_second": flops / seconds,
        "mfu": flops / seconds / peak.flops if peak else None,
        "peak_flops": peak.flops if peak else None,
        "peak_source": peak.source if peak else None,
        "iterations": model.iterations,
        "estimated_seconds": model.iterations * seconds,
        "bottleneck": metered.bottleneck,
        "losses": figures.get("losses"),
    }


def pick_rates(peak: Mapping[str, Any]) -> dict[str, float]:
    """Return the measured FLOP/s by dtype, as torch spells it."""
    return {
        key: float(value)
        for key, value in peak.items()
        if key.startswith(("float", "bfloat", "tf32")) and isinstance(value, int | float) and value > 0
    }


def render_ratios(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say of each model how its step compares over the hosts: the configuration is the same, the dtype is named where it is not."""
    lines = []
    for name in dict.fromkeys(item["model"] for row in rows for item in row["models"]):
        sides = [(row["host"], item) for row in rows for item in row["models"] if item["model"] == name]
        slowest = max(sides, key=lambda side: float(side[1]["step_seconds"]))
        for host, item in sides:
            ratio = slowest[1]["step_seconds"] / item["step_seconds"]
            if host != slowest[0]:
                dtypes = (item["dtype"], slowest[1]["dtype"])
                beside = "" if dtypes[0] == dtypes[1] else f", {dtypes[0]} beside {dtypes[1]}"
                lines.append(f"{name}: {host} is {ratio:.3g}x faster per step than {slowest[0]}{beside}")
    return lines
