"""Graphics devices from a tree like /sys, and what is said of a host that has no CUDA device."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.config.host_spec import HostSpec
from remote_train.graphics import name_adapter, render_cpu
from remote_train.host.adapter_table import RANGES
from remote_train.host.adapters import find_kind, parse_pci_ids
from remote_train.host.adapters_read import read_adapters, read_linux_adapters
from remote_train.measured import ADAPTER
from remote_train.preflight import find_unfit

PCI = "sys/bus/pci/devices"
IDS = """\
# a comment
1002  Advanced Micro Devices, Inc. [AMD/ATI]
\t1638  Cezanne [Radeon Vega Series / Radeon Vega Mobile Series]
\t\t1043 16c2  of a board
10de  NVIDIA Corporation
\t24dd  GA104M [GeForce RTX 3070 Mobile / Max-Q]
C 03  Display controller
\t00  VGA compatible controller
"""


def plug(root: Path, slot: str, ids: tuple[int, int, int], driver: str | None = None, **files: str) -> None:
    folder = root / PCI / slot
    folder.mkdir(parents=True)
    for name, number in zip(("class", "vendor", "device"), ids, strict=True):
        (folder / name).write_text(f"{number:#x}\n")
    for name, text in files.items():
        (folder / name).write_text(text)
    if driver:
        (folder / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")


def show(root: Path) -> list[tuple[Any, ...]]:
    keys = ("slot", "vendor", "name", "kind", "mobile", "driver", "note")
    rows = read_linux_adapters(str(root))
    for row in rows:
        ADAPTER(row)
    return [tuple(row[key] for key in keys) for row in rows]


def test_a_laptop_with_two_gpus(tmp_path: Path) -> None:
    plug(tmp_path, "0000:01:00.0", (0x030000, 0x10DE, 0x24DD), "nouveau", boot_vga="0\n")
    plug(tmp_path, "0000:01:00.1", (0x040300, 0x10DE, 0x228B), "snd_hda_intel")
    plug(tmp_path, "0000:06:00.0", (0x030000, 0x1002, 0x1638), "amdgpu", mem_info_vram_total=f"{512 << 20}\n")
    (tmp_path / "usr/share/misc").mkdir(parents=True)
    (tmp_path / "usr/share/misc/pci.ids").write_text(IDS)
    node = tmp_path / "sys/class/kfd/kfd/topology/nodes/1"
    node.mkdir(parents=True)
    (node / "properties").write_text("simd_count 32\ngfx_target_version 90012\nlocation_id 1536\ndomain 0\n")

    nouveau = "driven by nouveau, which has no CUDA: NVIDIA's own driver is needed"
    vega = "Radeon Vega Series / Radeon Vega Mobile Series"
    assert show(tmp_path) == [
        ("0000:01:00.0", "NVIDIA", "GeForce RTX 3070 Mobile / Max-Q", "discrete", True, "nouveau", nouveau),
        ("0000:06:00.0", "AMD", vega, "integrated", False, "amdgpu", None),
    ]
    amd = read_linux_adapters(str(tmp_path))[1]
    assert (amd["memory_bytes"], amd["gfx"]) == (512 << 20, "gfx90c")


def test_a_host_without_the_repository_of_names(tmp_path: Path) -> None:
    plug(tmp_path, "0000:00:02.0", (0x030000, 0x8086, 0x46A6), "i915", boot_vga="1\n")
    plug(tmp_path, "0000:03:00.0", (0x030200, 0x10DE, 0x2782))
    plug(tmp_path, "0000:04:00.0", (0x030000, 0x10DE, 0x1EB8), "vfio-pci")
    plug(tmp_path, "0000:05:00.0", (0x120000, 0x1002, 0x74A1), "amdgpu")
    plug(tmp_path, "0000:06:00.0", (0x030000, 0x1A03, 0x2000), "ast")
    plug(tmp_path, "0000:07:00.0", (0x120000, 0x1AE0, 0x0027))  # an accelerator of nobody who makes GPUs
    plug(tmp_path, "0000:08:00.0", (0x030000, 0x10DE, 0xFFFE), "nvidia")

    assert show(tmp_path) == [
        ("0000:00:02.0", "Intel", "Iris Xe Graphics", "integrated", False, "i915", None),
        ("0000:03:00.0", "NVIDIA", "GeForce RTX 4070 Ti", "discrete", False, None, "no driver loaded"),
        (
            "0000:04:00.0",
            "NVIDIA",
            "Tesla T4",
            "discrete",
            False,
            "vfio-pci",
            "reserved for a virtual machine by vfio-pci",
        ),
        ("0000:05:00.0", "AMD", "Instinct MI300X", "discrete", False, "amdgpu", None),
        ("0000:06:00.0", "ASPEED", None, "management", False, "ast", None),
        ("0000:08:00.0", "NVIDIA", None, "discrete", False, "nvidia", None),
    ]


@pytest.mark.parametrize(
    ("vendor", "number", "slot", "kind"),
    [
        (0x8086, 0xFFF0, "0000:00:02.0", "integrated"),
        (0x8086, 0xFFF0, "0000:03:00.0", "discrete"),
        (0x8086, 0x7D55, "0000:00:02.0", "integrated"),  # "Intel Arc Graphics", inside a Meteor Lake
        (0x8086, 0x56A5, "0000:00:05.0", "discrete"),  # an Arc A380, passed through to a virtual machine
        (0x1002, 0x1586, "0000:c4:00.0", "integrated"),
        (0x1002, 0x7550, "0000:03:00.0", "discrete"),
        (0x1002, 0x74A0, "0000:03:00.0", "integrated"),
        (0x10DE, 0x2E12, "000f:01:00.0", "integrated"),
        (0x1234, 0x1111, "0000:00:01.0", "virtual"),
        (0x4321, 0x0001, "0000:00:01.0", "unknown"),
    ],
)
def test_integrated_or_discrete(vendor: int, number: int, slot: str, kind: str) -> None:
    assert find_kind(vendor, number, slot)[0] == kind


def test_no_range_of_a_table_is_upside_down() -> None:
    assert [row for rows in RANGES.values() for row in rows if not 0 <= row[0] <= row[1] <= 0xFFFF] == []


def test_this_machine_agrees_with_its_own_sys() -> None:
    root = Path("/sys/bus/pci/devices")
    if not root.is_dir():
        pytest.skip("no PCI here")
    graphics = [path for path in sorted(root.iterdir()) if (path / "class").read_text().startswith("0x03")]
    found = [row for row in read_adapters() if row["slot"] in {path.name for path in graphics}]

    assert [row["slot"] for row in found] == [path.name for path in graphics]
    ids = [f"{(path / 'vendor').read_text()[2:6]}:{(path / 'device').read_text()[2:6]}" for path in graphics]
    assert [row["id"] for row in found] == ids
    assert all((row["driver"] is not None) == os.path.lexists(root / row["slot"] / "driver") for row in found)


FACTS: dict[str, Any] = {
    "python": {"path": "python3", "version": "3.12.1", "torch": "2.9.0", "torch_cuda": "12.8"},
    "gpus": [],
    "gpu_error": "no NVIDIA driver: libnvidia-ml.so.1 not found",
}
AMD = {
    "vendor": "AMD",
    "name": "Radeon RX 7900 XTX",
    "chip": "Navi 31",
    "kind": "discrete",
    "driver": "amdgpu",
}
NOUVEAU = {
    "vendor": "NVIDIA",
    "name": "GeForce GTX 970",
    "chip": "GM204",
    "kind": "discrete",
    "note": "no driver loaded",
}
BMC = {"vendor": "ASPEED", "name": None, "id": "1a03:2000", "kind": "management"}


@pytest.mark.parametrize(
    ("adapters", "words"),
    [
        (None, "no NVIDIA driver: libnvidia-ml.so.1 not found"),
        ([BMC], "no NVIDIA driver: libnvidia-ml.so.1 not found"),
        (
            [BMC, AMD],
            "it has AMD Radeon RX 7900 XTX (Navi 31, discrete, driver amdgpu), and no NVIDIA GPU; others are not supported yet",
        ),
        (
            [AMD, NOUVEAU],
            "no NVIDIA driver: libnvidia-ml.so.1 not found; on the bus: NVIDIA GeForce GTX 970 (GM204, discrete, no driver loaded)",
        ),
    ],
)
def test_nothing_but_a_cuda_device_makes_a_host_fit(adapters: Any, words: str) -> None:
    facts = {**FACTS, **({} if adapters is None else {"adapters": adapters})}

    assert find_unfit(HostSpec(name="box"), facts) == f"no CUDA device: {words}"
    assert find_unfit(HostSpec(name="box", device="cpu"), facts) is None


def test_names_for_people() -> None:
    assert (
        name_adapter({"vendor": "Apple", "name": "Apple M2", "kind": "integrated"}) == "Apple M2 (integrated)"
    )
    assert name_adapter(BMC) == "ASPEED 1a03:2000 (management)"
    hybrid = {"model": "i7-12700H", "physical": 14, "performance": 6, "logical": 20, "usable": 6}
    assert render_cpu(hybrid) == "i7-12700H, 6 P + 8 E cores, 20 threads"
    plain = {"model": "X", "physical": 8, "performance": 8, "logical": 8, "usable": 2, "quota": 1.5}
    assert render_cpu(plain) == "X, 8 cores; limited to 1.5 CPUs' time; a training gets 2"


@given(st.lists(st.text(alphabet="0123456789abcdef \tC#\n", max_size=20), max_size=20))
def test_no_file_of_names_raises(lines: list[str]) -> None:
    parse_pci_ids(lines, [(0x1002, 0x1638)])
