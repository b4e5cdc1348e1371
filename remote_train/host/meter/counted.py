"""The line that says what was counted."""

from __future__ import annotations

from .settings import choose_dtype

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Dict, Optional

    from .tally import Tally


def make_count_line(
    tally: Tally, mean: Dict[str, Any], settings: Dict[str, Any], device: str
) -> Dict[str, Any]:
    """Return the line's figures, each per optimizer step of this process; what is not known is None, and `why` says why."""
    counts = tally.counts()
    how = next((count.how for count in counts if count.how), None)
    parameters, trainable = tally.parameters()
    dtype, source = choose_dtype(mean["by_dtype"], settings, device)
    line = {
        "flops": mean["flops"],
        "how": how if mean["flops"] is not None else None,
        "why": make_why(tally, known=mean["flops"] is not None),
        "parameters": parameters,
        "trainable": trainable,
        "by_dtype": mean["by_dtype"],
        "dtype": dtype,
        "dtype_source": source,
        "shapes": tally.shapes(),
        "pause": round(tally.pause, 4),
    }
    whole = {name: mean[name] for name in ("kernels", "bytes", "tokens", "samples")}
    return dict(line, **{name: None if value is None else round(value) for name, value in whole.items()})


def make_why(tally: Tally, *, known: bool) -> Optional[str]:
    """Say why a figure is missing or not the whole truth; None when there is nothing to say."""
    reasons = [count.why for count in tally.counts() if count.why]
    if reasons:
        return reasons[0]
    if tally.why is not None:
        return tally.why
    rest = tally.estimated()
    if rest:
        how = "estimated from the size of their inputs" if known else "not counted, for want of time"
        return "%d of %d shapes %s" % (rest, tally.shapes(), how)
    return None
