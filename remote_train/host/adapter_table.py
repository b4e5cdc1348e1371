"""Which graphics devices are part of a processor and which are cards: ranges of PCI ids, with the family's name.

Sources: Linux, include/drm/intel/pciids.h (Intel; IS_DGFX platforms are the cards), drivers/gpu/drm/amd/amdgpu/amdgpu_drv.c
(AMD_IS_APU) and include/drm/drm_pciids.h (RADEON_IS_IGP); the PCI ID repository (pci-ids.ucw.cz) for AMD's since 2021,
NVIDIA's chipset graphics, virtual and management devices. Ranges are inclusive; of several the first counts. What NVIDIA
builds into processors later than GB10 is called a card until its id stands here: no rule over its ids tells them apart.
"""

from __future__ import annotations

DISCRETE, INTEGRATED, VIRTUAL, MANAGEMENT, UNKNOWN = (
    "discrete",
    "integrated",
    "virtual",
    "management",
    "unknown",
)

NVIDIA, AMD, INTEL = 0x10DE, 0x1002, 0x8086

VENDORS = {
    NVIDIA: "NVIDIA",
    AMD: "AMD",
    INTEL: "Intel",
    0x106B: "Apple",
    0x15AD: "VMware",
    0x80EE: "VirtualBox",
    0x1234: "QEMU",
    0x1B36: "QEMU",
    0x1AF4: "virtio",
    0x1013: "Cirrus",
    0x1414: "Microsoft",
    0x1D0F: "Amazon",
    0x1AB8: "Parallels",
    0x1A03: "ASPEED",
    0x102B: "Matrox",
    0x19E5: "Huawei",
    0x1ED5: "Moore Threads",
    0x1D17: "Zhaoxin",
    0x1DA3: "Habana",
    0x5143: "Qualcomm",
}

KINDS = {
    **dict.fromkeys((0x15AD, 0x80EE, 0x1234, 0x1B36, 0x1AF4, 0x1013, 0x1414, 0x1D0F, 0x1AB8), VIRTUAL),
    **dict.fromkeys((0x1A03, 0x102B, 0x19E5), MANAGEMENT),
    **dict.fromkeys((0x1ED5, 0x1DA3), DISCRETE),
    **dict.fromkeys((0x106B, 0x1D17, 0x5143), INTEGRATED),
}
"""Of vendors whose devices are all of one kind. Management: what a server's board shows its text on."""

_INTEL = (
    (0x4905, 0x4909, DISCRETE, "DG1 (Iris Xe MAX)"),
    (0x5690, 0x5698, DISCRETE, "DG2 (Arc A-series, mobile)"),
    (0x56A0, 0x56BF, DISCRETE, "DG2 (Arc A-series)"),
    (0x56C0, 0x56C2, DISCRETE, "DG2 (Data Center GPU Flex)"),
    (0x0B69, 0x0B6E, DISCRETE, "Ponte Vecchio (Data Center GPU Max)"),
    (0x0BD0, 0x0BDB, DISCRETE, "Ponte Vecchio (Data Center GPU Max)"),
    (0xE200, 0xE2FF, DISCRETE, "Battlemage (Arc B-series)"),
    (0x4626, 0x462A, INTEGRATED, "Alder Lake-P"),
    (0x46A0, 0x46C3, INTEGRATED, "Alder Lake-P"),
    (0x46D0, 0x46D4, INTEGRATED, "Alder Lake-N"),
    (0x4680, 0x4693, INTEGRATED, "Alder Lake-S"),
    (0xA780, 0xA78B, INTEGRATED, "Raptor Lake-S"),
    (0xA720, 0xA721, INTEGRATED, "Raptor Lake-P"),
    (0xA7A0, 0xA7AD, INTEGRATED, "Raptor Lake-P"),
    (0x7D51, 0x7D51, INTEGRATED, "Arrow Lake-P"),
    (0x7DD1, 0x7DD1, INTEGRATED, "Arrow Lake-P"),
    (0x7D67, 0x7D67, INTEGRATED, "Arrow Lake-S"),
    (0x7D41, 0x7D41, INTEGRATED, "Arrow Lake-U"),
    (0x7D40, 0x7D60, INTEGRATED, "Meteor Lake-P"),
    (0x7DD5, 0x7DD5, INTEGRATED, "Meteor Lake-P"),
    (0x6420, 0x64B0, INTEGRATED, "Lunar Lake"),
    (0xB080, 0xB0B0, INTEGRATED, "Panther Lake"),
    (0x9A40, 0x9AF8, INTEGRATED, "Tiger Lake"),
    (0x4C80, 0x4C9A, INTEGRATED, "Rocket Lake"),
    (0x4541, 0x4571, INTEGRATED, "Elkhart Lake"),
    (0x4E51, 0x4E71, INTEGRATED, "Jasper Lake"),
    (0x8A50, 0x8A71, INTEGRATED, "Ice Lake"),
    (0x9B21, 0x9BF6, INTEGRATED, "Comet Lake"),
    (0x3E90, 0x3EA9, INTEGRATED, "Coffee Lake"),
    (0x3184, 0x3185, INTEGRATED, "Gemini Lake"),
    (0x5A84, 0x5A85, INTEGRATED, "Apollo Lake"),
    (0x5902, 0x593B, INTEGRATED, "Kaby Lake"),
    (0x1902, 0x193D, INTEGRATED, "Skylake"),
    (0x1602, 0x163E, INTEGRATED, "Broadwell"),
    (0x0402, 0x0D2E, INTEGRATED, "Haswell"),
    (0x0152, 0x016A, INTEGRATED, "Ivy Bridge"),
    (0x0102, 0x0126, INTEGRATED, "Sandy Bridge"),
)

_AMD = (
    (0x74A0, 0x74A0, INTEGRATED, "MI300A"),
    (0x515E, 0x515E, MANAGEMENT, "ES1000"),
    (0x5969, 0x5969, MANAGEMENT, "ES1000"),
    (0x1304, 0x131D, INTEGRATED, "Kaveri"),
    (0x13C0, 0x13C0, INTEGRATED, "Granite Ridge"),
    (0x13DB, 0x13FE, INTEGRATED, "Cyan Skillfish"),
    (0x1506, 0x1506, INTEGRATED, "Mendocino"),
    (0x150E, 0x150E, INTEGRATED, "Strix Point (Radeon 880M / 890M)"),
    (0x1586, 0x1586, INTEGRATED, "Strix Halo (Radeon 8050S / 8060S)"),
    (0x1114, 0x1114, INTEGRATED, "Krackan Point"),
    (0x15BF, 0x15BF, INTEGRATED, "Phoenix (Radeon 780M / 760M)"),
    (0x15C8, 0x15C8, INTEGRATED, "Phoenix 2 (Radeon 740M)"),
    (0x15D8, 0x15D8, INTEGRATED, "Picasso / Raven 2"),
    (0x15DD, 0x15DD, INTEGRATED, "Raven Ridge"),
    (0x15E7, 0x15E7, INTEGRATED, "Barcelo"),
    (0x1636, 0x1636, INTEGRATED, "Renoir"),
    (0x1638, 0x1638, INTEGRATED, "Cezanne"),
    (0x163F, 0x163F, INTEGRATED, "Van Gogh"),
    (0x1435, 0x1435, INTEGRATED, "Van Gogh"),
    (0x164C, 0x164C, INTEGRATED, "Lucienne"),
    (0x164D, 0x164D, INTEGRATED, "Rembrandt"),
    (0x164E, 0x164E, INTEGRATED, "Raphael"),
    (0x1681, 0x1681, INTEGRATED, "Rembrandt (Radeon 680M)"),
    (0x1900, 0x1901, INTEGRATED, "Hawk Point"),
    (0x9610, 0x9616, INTEGRATED, "RS780"),
    (0x9710, 0x9715, INTEGRATED, "RS880"),
    (0x9640, 0x964F, INTEGRATED, "Sumo"),
    (0x9802, 0x980A, INTEGRATED, "Wrestler"),
    (0x9830, 0x983F, INTEGRATED, "Kabini"),
    (0x9850, 0x985F, INTEGRATED, "Mullins"),
    (0x9870, 0x9877, INTEGRATED, "Carrizo"),
    (0x98E4, 0x98E4, INTEGRATED, "Stoney Ridge"),
    (0x9900, 0x99A4, INTEGRATED, "Trinity / Richland"),
    # AMD has numbered the GPUs of its processors below 0x2000 since Kaveri, and its cards from 0x6600 to 0x7fff.
    (0x1100, 0x1FFF, INTEGRATED, ""),
    (0x6600, 0x7FFF, DISCRETE, ""),
)

_NVIDIA = (
    (0x2E12, 0x2E12, INTEGRATED, "GB10"),
    (0x0240, 0x0247, INTEGRATED, "C51"),
    (0x03D0, 0x03D6, INTEGRATED, "C61"),
    (0x0531, 0x053F, INTEGRATED, "MCP67"),
    (0x07E0, 0x07E5, INTEGRATED, "MCP73"),
    (0x0840, 0x084F, INTEGRATED, "MCP77 / MCP78"),
    (0x0860, 0x087F, INTEGRATED, "MCP79 / MCP7A"),
    (0x08A0, 0x08A9, INTEGRATED, "MCP89"),
    (0x0000, 0xFFFF, DISCRETE, ""),
)

RANGES = {INTEL: _INTEL, AMD: _AMD, NVIDIA: _NVIDIA}

NAMES = {
    (NVIDIA, 0x2782): "AD104 [GeForce RTX 4070 Ti]",
    (NVIDIA, 0x2684): "AD102 [GeForce RTX 4090]",
    (NVIDIA, 0x2204): "GA102 [GeForce RTX 3090]",
    (NVIDIA, 0x20B0): "GA100 [A100 SXM4 40GB]",
    (NVIDIA, 0x2330): "GH100 [H100 SXM5 80GB]",
    (NVIDIA, 0x1EB8): "TU104GL [Tesla T4]",
    (AMD, 0x744C): "Navi 31 [Radeon RX 7900 XT/7900 XTX/7900 GRE/7900M]",
    (AMD, 0x73BF): "Navi 21 [Radeon RX 6800/6800 XT / 6900 XT]",
    (AMD, 0x74A1): "Aqua Vanjaram [Instinct MI300X]",
    (INTEL, 0x56A0): "DG2 [Arc A770]",
    (INTEL, 0xE20B): "Battlemage G21 [Arc B580]",
    (INTEL, 0x46A6): "Alder Lake-P GT2 [Iris Xe Graphics]",
    (INTEL, 0x4680): "AlderLake-S GT1 [UHD Graphics 770]",
}
"""Names in the PCI ID repository, for hosts that have no copy of it: those met most."""
