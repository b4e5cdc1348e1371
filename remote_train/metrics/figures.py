"""An MFU as text, and when not to believe it: the one place, for every line, table and sentence that shows one. Pure.

More than 100 % is shown as it is: a bare matmul reaches 1.21 of the table's peak on cards that clock above their data
sheet. More than 130 % no device reaches, least of all a whole training: then what it was divided by is at fault.
"""

from __future__ import annotations

MFU_DOUBTFUL = (
    1.3  # SOURCE: published GEMM measurements of GeForce cards, up to 1.21 of the data sheet's peak
)
ESTIMATE = "6N"
"""The `flops_source` of FLOPs that were not counted; an MFU by it is marked with a tilde."""
DOUBT = "denominator looks wrong"


def is_suspect(fraction: float) -> bool:
    """Tell whether an MFU (fraction) can only come from a wrong denominator."""
    return fraction > MFU_DOUBTFUL


def render_percent(fraction: float) -> str:
    """Return a fraction as a percentage, never rounded to zero: `38.9 %`, `0.23 %`, `< 0.01 %`."""
    percent = fraction * 100
    if 0 < percent < 0.01:
        return "< 0.01 %"
    return f"{percent:.1f} %" if percent >= 9.995 else f"{percent:.2f} %"


def render_mfu(fraction: float) -> str:
    """Return an MFU for a sentence or a line: `38.9 %`, `250.0 % (denominator looks wrong)`."""
    return f"{render_percent(fraction)} ({DOUBT})" if is_suspect(fraction) else render_percent(fraction)


def render_mfu_cell(fraction: float) -> str:
    """Return an MFU for a narrow column: `38.9 %`, and a question mark where it is not to be believed, `250.0 %?`."""
    return f"{render_percent(fraction)}?" if is_suspect(fraction) else render_percent(fraction)
