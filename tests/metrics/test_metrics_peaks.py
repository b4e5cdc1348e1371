"""The peak of a device: every published figure, names that must not collide, slices, laptops, unknowns."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train import measured
from remote_train.metrics.denominator import choose_device_peak
from remote_train.metrics.peak_table import SOURCES, TABLE, Row
from remote_train.metrics.peaks import DeviceFacts, Peak, choose_peak, explain_missing_peak, parse_dtype

FIGURES = list(csv.DictReader((Path(__file__).parent / "data" / "peaks.csv").read_text().splitlines()))
CASES = [(row, dtype) for row in FIGURES for dtype in ("fp16", "bf16", "tf32", "fp32", "fp8")]
LAPTOP = DeviceFacts(
    "cuda", "NVIDIA GeForce RTX 4070 Laptop GPU", sm_count=36, clock_mhz=1695, capability=(8, 9)
)
MIG = "NVIDIA A100-SXM4-80GB MIG 1g.10gb"


def gpu(
    name: str, sms: int | None = None, mhz: int | None = None, capability: tuple[int, int] | None = None
) -> DeviceFacts:
    return DeviceFacts("cuda", name, sms, mhz, capability)


def tera(peak: Peak | None) -> float | None:
    return None if peak is None else peak.flops / 1e12


@pytest.mark.parametrize(
    ("row", "dtype"), CASES, ids=lambda value: value if isinstance(value, str) else value["name"]
)
def test_every_published_figure(row: dict[str, str], dtype: str) -> None:
    device = gpu(row["name"], int(row["sm_count"]) if row["sm_count"] else None)
    if dtype == "tf32" and not row["bf16"]:
        dtype = "fp32"  # TF32 "allowed" on Turing and Volta runs as fp32
    expected = float(row[dtype]) if row[dtype] else None
    assert tera(choose_peak(device, dtype)) == (
        None if expected is None else pytest.approx(expected, rel=0.015)
    )


def test_every_row_of_the_table_has_a_published_figure() -> None:
    first = {next(row.name for row in TABLE if row.matches(figure["name"])) for figure in FIGURES}
    assert first == {row.name for row in TABLE}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 88.2),
        ("NVIDIA GeForce RTX 4070 Ti", 80.2),
        ("NVIDIA GeForce RTX 4070 SUPER", 71.0),
        ("NVIDIA GeForce RTX 4070", 58.3),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 503.8),
    ],
)
def test_names_do_not_collide(name: str, expected: float) -> None:
    assert tera(choose_peak(gpu(name), "bfloat16")) == pytest.approx(expected, rel=0.015)


def test_quadro_rtx_6000_is_turing() -> None:
    assert tera(choose_peak(gpu("Quadro RTX 6000"), "float16")) == pytest.approx(130.5, rel=0.015)


@pytest.mark.parametrize(
    "name", ["NVIDIA GH200 480GB", "NVIDIA A40-48Q", "NVIDIA GeForce RTX 9999", "Tesla T40", "GRID T4-16Q"]
)
def test_a_name_that_only_resembles_a_row_is_unknown(name: str) -> None:
    assert choose_peak(gpu(name), "bf16") is None


def test_the_source_names_card_dtype_and_accumulation() -> None:
    peak = choose_peak(gpu("NVIDIA GeForce RTX 4070 Ti", 60, 2610, (8, 9)), "torch.bfloat16")
    assert peak is not None
    assert peak.source == "table: NVIDIA GeForce RTX 4070 Ti, bf16, FP32 accumulate, dense; formula"
    assert peak.name == "NVIDIA GeForce RTX 4070 Ti"
    plain = choose_peak(gpu("NVIDIA GeForce RTX 4070 Ti"), "float32")
    assert plain is not None
    assert plain.source == "table: NVIDIA GeForce RTX 4070 Ti, fp32, dense; formula"


@pytest.mark.parametrize(
    ("spelled", "key"),
    [
        ("torch.bfloat16", "bf16"),
        ("half", "fp16"),
        ("float32", "fp32"),
        ("TF32", "tf32"),
        ("float8_e4m3fn", "fp8"),
        ("int8", "int8"),
    ],
)
def test_dtypes_as_torch_spells_them(spelled: str, key: str) -> None:
    assert parse_dtype(spelled) == key


def test_the_users_own_figure_comes_first() -> None:
    device = gpu("NVIDIA GeForce RTX 4070 Ti", 60)
    peak = choose_peak(device, "bfloat16", overrides={"bf16": 93.0}, measured={"bfloat16": 85e12})
    assert peak == Peak(93.0e12, "hosts.toml: 93 TFLOP/s for bf16", device.name)
    assert tera(choose_peak(device, "bfloat16", overrides={"fp16": 93.0})) == pytest.approx(80.2, rel=0.01)


def test_laptop_parts_are_computed_from_the_live_figures() -> None:
    peak = choose_peak(LAPTOP, "bf16")
    assert tera(peak) == pytest.approx(36 * 1695e6 * 512 / 1e12)
    assert peak is not None
    assert peak.source.startswith("computed: ")
    assert "laptop" in peak.source


def test_a_laptop_part_without_live_figures_is_unknown() -> None:
    assert choose_peak(gpu(LAPTOP.name, None, 1695, (8, 9)), "bf16") is None
    assert tera(choose_peak(gpu(LAPTOP.name), "bf16", measured={"bf16": 30e12})) == 30


def test_a_mig_slice_gets_its_share() -> None:
    peak = choose_peak(gpu(MIG, 14, 1410, (8, 0)), "bf16")
    assert tera(peak) == pytest.approx(14 * 1410e6 * 2048 / 1e12)
    assert peak is not None
    assert "14 of 108 SMs" in peak.source
    assert tera(
        choose_peak(gpu("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 16, 1980, (9, 0)), "bf16")
    ) == pytest.approx(989 * 16 / 132)


@pytest.mark.parametrize("sms", [None, 108])
def test_a_mig_slice_never_gets_the_whole_cards_peak(sms: int | None) -> None:
    assert choose_peak(gpu(MIG, sms, 1410, (8, 0)), "bf16") is None


def test_few_sms_without_the_word_mig_are_a_slice_too() -> None:
    assert tera(choose_peak(gpu("NVIDIA A100-SXM4-80GB", 28), "bf16")) == pytest.approx(
        312 * 28 / 108, rel=0.01
    )


def test_another_sm_count_is_computed_and_said() -> None:
    peak = choose_peak(gpu("NVIDIA A100-SXM-64GB", 124, 1395, (8, 0)), "bf16")
    assert tera(peak) == pytest.approx(124 * 1395e6 * 2048 / 1e12)
    assert peak is not None
    assert "124 SMs x 1395 MHz x 2048" in peak.source
    assert "has 108" in peak.source


def test_the_sm_count_chooses_between_cards_of_one_name() -> None:
    assert tera(choose_peak(gpu("NVIDIA GeForce RTX 3080", 70), "bf16")) == pytest.approx(61.3, rel=0.01)
    assert tera(choose_peak(gpu("NVIDIA GeForce RTX 3080"), "bf16")) == pytest.approx(59.5, rel=0.01)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (gpu("NVIDIA GeForce RTX 5099", 100, 2500, (12, 0)), 100 * 2.5e9 * 512),
        (gpu("NVIDIA RTX 4000 SFF Ada Generation", 48, 1560, (8, 9)), 48 * 1.56e9 * 1024),
        (gpu("NVIDIA GH200 480GB", 132, 1980, (9, 0)), 132 * 1.98e9 * 4096),
        (gpu("NVIDIA X1", 10, 1000, (99, 0)), None),
        (gpu("NVIDIA X1", 10, 1000, None), None),
    ],
)
def test_unknown_names_are_computed_by_capability(device: DeviceFacts, expected: float | None) -> None:
    peak = choose_peak(device, "bf16")
    assert (peak and peak.flops) == (expected and pytest.approx(expected))


def test_gtx_cards_have_no_tensor_cores() -> None:
    device = gpu("NVIDIA GeForce GTX 1660 Ti", 24, 1770, (7, 5))
    assert choose_peak(device, "fp16") is None
    assert tera(choose_peak(device, "fp32")) == pytest.approx(5.4, rel=0.02)
    assert tera(choose_peak(gpu("NVIDIA GeForce GTX 1080 Ti", 28, 1582, (6, 1)), "fp32")) == pytest.approx(
        11.3, rel=0.02
    )


@pytest.mark.parametrize(("name", "capability"), [("Tesla T4", (7, 5)), ("Tesla V100-SXM2-16GB", None)])
def test_emulated_bf16_has_no_table_peak(name: str, capability: tuple[int, int] | None) -> None:
    device = gpu(name, None, None, capability)
    assert choose_peak(device, "bf16") is None
    assert "emulated" in explain_missing_peak(device, "bf16")
    peak = choose_peak(device, "bf16", measured={"bfloat16": 2.4e12})
    assert tera(peak) == 2.4
    assert peak is not None
    assert "emulated" in peak.source


def test_a_cpu_is_measured_or_unknown() -> None:
    device = DeviceFacts("cpu", "12th Gen Intel(R) Core(TM) i7-12700H")
    assert choose_peak(device, "float32") is None
    assert "CPU" in explain_missing_peak(device, "float32")
    peak = choose_peak(device, "float32", measured={"float32": 0.56e12}, threads=2, shapes={"float32": 2048})
    assert peak == Peak(0.56e12, "measured: 2048x2048 matmul, float32, 2 threads", device.name)


def test_a_slow_cpu_is_measured_by_smaller_matrices() -> None:
    said = {"float32": 3e10, "bfloat16": None, "shapes": {"float32": 512, "bfloat16": None}, "threads": 1}
    measured.peak(said)  # a dtype that it cannot do is null
    found = choose_device_peak(DeviceFacts("cpu", "a Pi"), "float32", None, said)
    assert found == Peak(3e10, "measured: 512x512 matmul, float32, 1 thread", "a Pi")
    assert choose_device_peak(DeviceFacts("cpu", "a Pi"), "bfloat16", None, said) is None


def test_an_unknown_gpu_is_explained() -> None:
    assert "not in the table" in explain_missing_peak(gpu("NVIDIA X1"), "bf16")


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_figure_that_is_no_peak_is_passed_over(value: float) -> None:
    assert choose_peak(DeviceFacts("cpu", "x"), "float32", measured={"float32": value}) is None


@pytest.mark.parametrize(("mhz", "factor"), [(2610, 1), (2730, 1), (2360, 1), (1800, 1800 / 2610), (None, 1)])
def test_a_boost_clock_well_below_the_tables_is_counted_and_said(mhz: int | None, factor: float) -> None:
    peak = choose_peak(gpu("NVIDIA GeForce RTX 4070 Ti", 60, mhz, (8, 9)), "bf16")
    assert tera(peak) == pytest.approx(60 * 2610e6 * 512 / 1e12 * factor)
    assert peak is not None
    assert peak.source.startswith("table: " if factor == 1 else "computed: ")
    assert factor == 1 or "at 1800 MHz (the table's RTX 4070 Ti has 2610)" in peak.source


def test_a_data_centre_cards_highest_clock_is_no_denominator() -> None:
    name = "NVIDIA H100 80GB HBM3"
    assert tera(choose_peak(gpu(name, 132, 1980, (9, 0)), "bf16")) == 989
    held = choose_peak(gpu(name, 132, 1200, (9, 0)), "bf16")
    assert tera(held) == pytest.approx(989 * 1200 / 1830)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.label)
def test_every_row_is_traceable(row: Row) -> None:
    assert row.source in SOURCES
    assert not re.search(r"[(\[\\?]", row.label)
    sheet = row.source.short == "data sheet"
    assert bool(row.tflops) <= sheet  # figures that are not the formula's come from a data sheet
    if (
        row.tflops and row.mhz and row.sms
    ):  # the clock that the live one is held against is that of the figure
        rate = {"H": 4096, "L": 1024}[row.name[0]]
        assert row.peak("bf16") == pytest.approx(row.sms * row.mhz * 1e6 * rate, rel=0.015)


@given(
    st.sampled_from(FIGURES),
    st.sampled_from(["{} Laptop GPU", "{} with Max-Q Design", "{} MIG 1g.10gb", "{}-8Q"]),
)
def test_a_part_of_a_card_never_gets_the_cards_own_row(row: dict[str, str], pattern: str) -> None:
    device = gpu(pattern.format(row["name"]), 10, 1000, (8, 9))
    peak = choose_peak(device, "fp32")
    assert peak is None or peak.source.startswith("computed: ")


@given(st.sampled_from(TABLE))
def test_a_row_is_not_hidden_behind_an_earlier_one(row: Row) -> None:
    names = [figure["name"] for figure in FIGURES if row.matches(figure["name"])]
    rows = [next(first for first in TABLE if first.matches(name)) for name in names]
    assert row.name in {first.name for first in rows}


def test_the_4090_d_is_a_card_of_its_own() -> None:
    assert tera(choose_peak(gpu("NVIDIA GeForce RTX 4090 D", 114), "bf16")) == pytest.approx(147.1, rel=0.01)
    assert tera(choose_peak(gpu("NVIDIA GeForce RTX 4090", 114, 2520, (8, 9)), "bf16")) == pytest.approx(
        147.1, rel=0.01
    )


@pytest.mark.parametrize(("dtype", "tera_flops"), [("tf32", 8), ("bfloat16", 30), ("float32", None)])
def test_of_what_a_host_measured_each_dtype_has_its_own_peak(dtype: str, tera_flops: float | None) -> None:
    measured = {
        "tf32": 8e12,
        "bfloat16": 30e12,
        "bandwidth": 2e11,
        "dispatch": 1e-6,
        "threads": 4,
        "float32": None,
    }
    peak = choose_device_peak(gpu("A card of no table", capability=(8, 9)), dtype, None, measured)
    assert tera(peak) == tera_flops
