"""Dense peaks of NVIDIA and AMD devices as data: one row per card, figures only.

One formula gives every datasheet row of a card with tensor cores: SMs x boost clock x F, with F in FLOP per clock and SM
for fp16/bf16 inputs and FP32 accumulate, dense. F depends on the chip's class; GeForce cards, the A10G, L40 and L20
run FP32 accumulate at half the rate of the same chip elsewhere. Cards whose datasheet does not follow it have
explicit figures.

Each row says where it is from, and how sure that is. No maker's document was found for every card: then the row is the
formula, which gives the whitepapers' own rows exactly, with the rate of its chip's class.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

Rates = dict[str, int]

# FLOP per clock and SM, dense, FP32 accumulate. A missing key: no such units. fp32 is that of the CUDA cores.
VOLTA: Rates = {"fp16": 1024, "fp32": 128}
TURING_PRO: Rates = {"fp16": 1024, "fp32": 128}
TURING_GEFORCE: Rates = {"fp16": 512, "fp32": 128}
GA100: Rates = {"fp16": 2048, "bf16": 2048, "tf32": 1024, "fp32": 128}
AMPERE_PRO: Rates = {"fp16": 1024, "bf16": 1024, "tf32": 512, "fp32": 256}
AMPERE_GEFORCE: Rates = {"fp16": 512, "bf16": 512, "tf32": 256, "fp32": 256}
ADA_PRO: Rates = {"fp16": 1024, "bf16": 1024, "tf32": 512, "fp32": 256, "fp8": 2048}
ADA_GEFORCE: Rates = {"fp16": 512, "bf16": 512, "tf32": 256, "fp32": 256, "fp8": 1024}
HOPPER: Rates = {"fp16": 4096, "bf16": 4096, "tf32": 2048, "fp32": 256, "fp8": 8192}
BLACKWELL: Rates = {"fp16": 8192, "bf16": 8192, "tf32": 4096, "fp32": 256, "fp8": 16384}
BLACKWELL_PRO: Rates = ADA_PRO
BLACKWELL_GEFORCE: Rates = ADA_GEFORCE
FP32_ONLY: Rates = {"fp32": 256}  # Maxwell, Pascal GeForce, GTX 16: no tensor cores

# For names not in the table: compute capability -> rates of (GeForce, any other card of that chip).
BY_CAPABILITY: Mapping[tuple[int, int], tuple[Rates, Rates]] = {
    (6, 1): (FP32_ONLY, FP32_ONLY),
    (7, 0): (VOLTA, VOLTA),
    (7, 5): (TURING_GEFORCE, TURING_PRO),
    (8, 0): (GA100, GA100),
    (8, 6): (AMPERE_GEFORCE, AMPERE_PRO),
    (8, 9): (ADA_GEFORCE, ADA_PRO),
    (9, 0): (HOPPER, HOPPER),
    (10, 0): (BLACKWELL, BLACKWELL),
    (10, 3): (BLACKWELL, BLACKWELL),
    (12, 0): (BLACKWELL_GEFORCE, BLACKWELL_PRO),
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a row is from: in a word for beside an MFU, and in full for who audits it."""

    short: str
    full: str


TURING_PAPER = Source("Turing whitepaper", "NVIDIA's Turing whitepaper, the reference card")
GA100_PAPER = Source("A100 whitepaper", "NVIDIA's A100 whitepaper")
GA102_PAPER = Source("GA102 whitepaper", "NVIDIA's GA102 whitepaper")
ADA_PAPER = Source("Ada whitepaper v2.1", "NVIDIA's Ada whitepaper, v2.1, appendix A")
BLACKWELL_PAPER = Source(
    "RTX Blackwell whitepaper", "NVIDIA's RTX Blackwell whitepaper, as two projects cite it"
)
SHEET = Source(
    "data sheet", "the maker's data sheet, as the accelerator table of stas00/ml-engineering cites it"
)
SHEET_FP32 = Source("data sheet", "the maker's data sheet, cited as above; the fp32 cell is from memory")
SHEET_PARTLY = Source(
    "data sheet", "the maker's data sheet, cited as above, for fp16 and bf16; the other cells are from memory"
)
AMD_SHEET = Source("data sheet", "AMD's figure of 2.5 PFLOP/s; others use 2300, and the formula gives 2516")
MEASURED = Source("formula", "the formula; its class confirmed by published matmul measurements of this card")
FORMULA = Source(
    "formula", "the formula, with the class of its chip; no document and no measurement of this card"
)
SOURCES = (  # the surest first
    *(TURING_PAPER, GA102_PAPER, GA100_PAPER, ADA_PAPER, BLACKWELL_PAPER),
    *(SHEET, SHEET_FP32, SHEET_PARTLY, AMD_SHEET, MEASURED, FORMULA),
)


@dataclass(frozen=True, slots=True)
class Row:
    """A card: what its name must hold, its SMs, boost clock and rates; `tflops` where the datasheet says otherwise."""

    name: str
    sms: int | None
    mhz: int | None
    rates: Rates = field(default_factory=dict)
    source: Source = FORMULA
    tflops: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name for people: without the endings that a pattern allows."""
        return self.name.partition("(?:")[0].rstrip("-")

    def matches(self, name: str) -> bool:
        """Tell whether a device of this name is this card; the row's `name` is a regular expression between word boundaries.

        A hyphen continues a word: "A40-48Q" is a share of an A40.
        """
        return re.search(rf"(?<![\w-])(?:{self.name})(?![\w-])", name) is not None

    def peak(self, dtype: str) -> float | None:
        """Tell the card's dense peak in FLOP/s; None when it has no units for `dtype`."""
        if self.tflops:
            return self.tflops[dtype] * 1e12 if dtype in self.tflops else None
        if self.sms is None or self.mhz is None or dtype not in self.rates:
            return None
        return self.sms * self.mhz * 1e6 * self.rates[dtype]


def _sheet(half: float, tf32: float | None, fp32: float, fp8: float | None = None) -> Mapping[str, float]:
    """Give the figures of a datasheet in TFLOP/s, fp16 and bf16 being the same."""
    figures = {"fp16": half, "bf16": half, "tf32": tf32, "fp32": fp32, "fp8": fp8}
    return {dtype: value for dtype, value in figures.items() if value is not None}


# The first row that matches is it: the longer name before the shorter. Where one name covers chips of several SM
# counts (RTX 3080 10 and 12 GB), there is a row for each, and the device's own SM count chooses.
TABLE: tuple[Row, ...] = (
    # name                                        SMs  MHz
    Row(r"RTX 2060 SUPER", 34, 1650, TURING_GEFORCE, FORMULA),
    Row(r"RTX 2060", 30, 1680, TURING_GEFORCE, FORMULA),
    Row(r"RTX 2070 SUPER", 40, 1770, TURING_GEFORCE, FORMULA),
    Row(r"RTX 2070", 36, 1620, TURING_GEFORCE, FORMULA),
    Row(r"RTX 2080 SUPER", 48, 1815, TURING_GEFORCE, FORMULA),
    Row(r"RTX 2080 Ti", 68, 1545, TURING_GEFORCE, TURING_PAPER),
    Row(r"RTX 2080", 46, 1710, TURING_GEFORCE, FORMULA),
    Row(r"TITAN RTX", 72, 1770, TURING_PRO, TURING_PAPER),
    Row(r"RTX 3050", 20, 1777, AMPERE_GEFORCE, FORMULA),
    Row(r"RTX 3060 Ti", 38, 1665, AMPERE_GEFORCE, FORMULA),
    Row(r"RTX 3060", 28, 1777, AMPERE_GEFORCE, FORMULA),
    Row(r"RTX 3070 Ti", 48, 1770, AMPERE_GEFORCE, FORMULA),
    Row(r"RTX 3070", 46, 1725, AMPERE_GEFORCE, FORMULA),
    Row(r"RTX 3080 Ti", 80, 1665, AMPERE_GEFORCE, MEASURED),
    Row(r"RTX 3080", 68, 1710, AMPERE_GEFORCE, MEASURED),
    Row(r"RTX 3080", 70, 1710, AMPERE_GEFORCE, FORMULA),
    Row(r"RTX 3090 Ti", 84, 1860, AMPERE_GEFORCE, FORMULA),
    Row(r"RTX 3090", 82, 1695, AMPERE_GEFORCE, GA102_PAPER),
    Row(r"RTX 4060 Ti", 34, 2535, ADA_GEFORCE, MEASURED),
    Row(r"RTX 4060", 24, 2460, ADA_GEFORCE, FORMULA),
    Row(r"RTX 4070 Ti SUPER", 66, 2610, ADA_GEFORCE, MEASURED),
    Row(r"RTX 4070 Ti", 60, 2610, ADA_GEFORCE, FORMULA),
    Row(r"RTX 4070 SUPER", 56, 2475, ADA_GEFORCE, MEASURED),
    Row(r"RTX 4070", 46, 2475, ADA_GEFORCE, FORMULA),
    Row(r"RTX 4080 SUPER", 80, 2550, ADA_GEFORCE, FORMULA),
    Row(r"RTX 4080", 76, 2505, ADA_GEFORCE, FORMULA),
    Row(r"RTX 4090 D", 114, 2520, ADA_GEFORCE, FORMULA),
    Row(r"RTX 4090", 128, 2520, ADA_GEFORCE, ADA_PAPER),
    Row(r"RTX 5060 Ti", 36, 2572, BLACKWELL_GEFORCE, MEASURED),
    Row(r"RTX 5060", 30, 2497, BLACKWELL_GEFORCE, FORMULA),
    Row(r"RTX 5070 Ti", 70, 2452, BLACKWELL_GEFORCE, MEASURED),
    Row(r"RTX 5070", 48, 2512, BLACKWELL_GEFORCE, FORMULA),
    Row(r"RTX 5080", 84, 2617, BLACKWELL_GEFORCE, MEASURED),
    Row(r"RTX 5090", 170, 2407, BLACKWELL_GEFORCE, BLACKWELL_PAPER),
    Row(r"V100-(?:SXM[23]|DGXS)(?:-\d+GB)?", 80, 1530, VOLTA, MEASURED),
    Row(r"V100-PCIE(?:-\d+GB)?", 80, 1370, VOLTA, FORMULA),
    Row(r"T4", 40, 1590, TURING_PRO, MEASURED),
    Row(r"Quadro RTX 8000", 72, 1770, TURING_PRO, FORMULA),
    Row(r"Quadro RTX 6000", 72, 1770, TURING_PRO, FORMULA),
    Row(r"Quadro RTX 5000", 48, 1815, TURING_PRO, FORMULA),
    Row(r"A100(?:-(?:SXM\d?|PCIE))?(?:-\d+GB)?", 108, 1410, GA100, GA100_PAPER),
    Row(r"A30", 56, 1440, GA100, FORMULA),
    Row(r"RTX A6000", 84, 1800, AMPERE_PRO, MEASURED),
    Row(r"RTX A5500", 80, 1665, AMPERE_PRO, FORMULA),
    Row(r"RTX A5000", 64, 1695, AMPERE_PRO, MEASURED),
    Row(r"RTX A4500", 56, 1650, AMPERE_PRO, FORMULA),
    Row(r"RTX A4000", 48, 1560, AMPERE_PRO, MEASURED),
    Row(r"RTX A2000", 26, 1200, AMPERE_PRO, FORMULA),
    Row(r"A40", 84, 1740, AMPERE_PRO, FORMULA),
    Row(r"A10G", 80, 1710, AMPERE_GEFORCE, MEASURED),
    Row(r"A10", 72, 1695, AMPERE_PRO, FORMULA),
    Row(r"A16", 10, 1755, AMPERE_PRO, FORMULA),
    Row(r"A2", 10, 1770, AMPERE_PRO, FORMULA),
    Row(r"RTX 6000 Ada", 142, 2505, ADA_PRO, MEASURED),
    Row(r"RTX 5000 Ada", 100, 2550, ADA_PRO, FORMULA),
    Row(r"RTX 4500 Ada", 60, 2580, ADA_PRO, FORMULA),
    Row(r"RTX 4000 Ada", 48, 2175, ADA_PRO, MEASURED),
    Row(r"RTX 2000 Ada", 22, 2130, ADA_PRO, FORMULA),
    Row(r"L40S", 142, 2520, source=SHEET, tflops=_sheet(362, 183, 91.6, 733)),
    Row(r"L40", 142, 2490, ADA_GEFORCE, MEASURED),
    Row(r"L4", 58, 2040, ADA_PRO, SHEET),
    Row(r"L20", 92, None, source=SHEET, tflops=_sheet(119.5, 59.8, 59.8, 239)),
    Row(r"H100 PCIe", 114, None, source=SHEET, tflops=_sheet(756, 378, 51, 1513)),
    Row(r"H100 NVL", 132, None, source=SHEET_FP32, tflops=_sheet(835, 418, 60, 1671)),
    Row(r"H100", 132, 1830, source=SHEET, tflops=_sheet(989, 494.5, 67, 1979)),
    Row(r"H200 NVL", 132, None, source=SHEET_FP32, tflops=_sheet(836, 418, 60, 1671)),
    Row(r"H200", 132, 1830, source=SHEET, tflops=_sheet(989, 494.5, 67, 1979)),
    Row(r"H20", 78, None, source=SHEET_PARTLY, tflops=_sheet(148, 74, 44, 296)),
    Row(r"B100", None, None, source=SHEET_PARTLY, tflops=_sheet(1800, 900, 60, 3500)),
    Row(r"B200", 148, None, source=SHEET, tflops=_sheet(2250, 1125, 80, 4500)),
    Row(r"GB200", None, None, source=SHEET, tflops=_sheet(2500, 1250, 80, 5000)),
    Row(r"GB300", None, None, source=SHEET, tflops=_sheet(2500, 1250, 80, 5000)),
    Row(r"RTX PRO 6000 Blackwell Max-Q", 188, 2280, BLACKWELL_PRO, FORMULA),
    Row(r"RTX PRO 6000 Blackwell", 188, 2617, BLACKWELL_PRO, MEASURED),
    Row(r"RTX PRO 5000 Blackwell", 110, 2617, BLACKWELL_PRO, MEASURED),
    Row(r"RTX PRO 4500 Blackwell", 82, 2617, BLACKWELL_PRO, FORMULA),
    Row(r"RTX PRO 4000 Blackwell", 70, 2617, BLACKWELL_PRO, FORMULA),
    # torch shows each of a MI250's two dies (GCDs) as a device: half of the card's figures.
    Row(r"MI250X", None, None, source=SHEET_PARTLY, tflops=_sheet(191.5, None, 23.95)),
    Row(r"MI250", None, None, source=SHEET_PARTLY, tflops=_sheet(181, None, 22.65)),
    Row(r"MI300A", None, None, source=SHEET_PARTLY, tflops=_sheet(980.6, 490.3, 122.6, 1961.2)),
    Row(r"MI300X", None, None, source=SHEET, tflops=_sheet(1307, 653.7, 163.4, 2614)),
    Row(r"MI325X", None, None, source=SHEET, tflops=_sheet(1307, 653.7, 163.4, 2614)),
    Row(r"MI355X", None, None, source=AMD_SHEET, tflops=_sheet(2500, None, 157.3, 5000)),
)
