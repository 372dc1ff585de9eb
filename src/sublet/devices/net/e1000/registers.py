"""Register offsets and bits.

Reference: Intel "PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual", revision
4.0 (317453-006), chapter 13 "Register Descriptions"; the names are the manual's.
"""

from __future__ import annotations

from typing import Final

CTRL, STATUS, EECD, EERD, CTRL_EXT = 0x0000, 0x0008, 0x0010, 0x0014, 0x0018
MDIC, FCAL, FCAH, FCT, VET = 0x0020, 0x0028, 0x002C, 0x0030, 0x0038
ICR, ITR, ICS, IMS, IMC = 0x00C0, 0x00C4, 0x00C8, 0x00D0, 0x00D8
RCTL, FCTTV, TXCW, RXCW, TCTL, TIPG, AIFS = 0x0100, 0x0170, 0x0178, 0x0180, 0x0400, 0x0410, 0x0458
LEDCTL, PBA, FCRTL, FCRTH = 0x0E00, 0x1000, 0x2160, 0x2168
RDBAL, RDBAH, RDLEN, RDH, RDT, RDTR, RXDCTL, RADV = (
    0x2800, 0x2804, 0x2808, 0x2810, 0x2818, 0x2820, 0x2828, 0x282C,
)  # fmt: skip
TDBAL, TDBAH, TDLEN, TDH, TDT, TIDV, TXDCTL, TADV = (
    0x3800, 0x3804, 0x3808, 0x3810, 0x3818, 0x3820, 0x3828, 0x382C,
)  # fmt: skip
RXCSUM, MTA, RAL, VFTA, MANC = 0x5000, 0x5200, 0x5400, 0x5600, 0x5820
WUC, WUFC, WUS = 0x5800, 0x5808, 0x5810
STATISTICS, STATISTICS_END = 0x4000, 0x4100
MPC, GPRC, BPRC, MPRC, GPTC, GORCL, GOTCL = 0x4010, 0x4074, 0x4078, 0x407C, 0x4080, 0x4088, 0x4090
TPR, TPT = 0x40D0, 0x40D4
MTA_ENTRIES, RAR_ENTRIES, VFTA_ENTRIES = 128, 16, 128

CTRL_FD: Final = 1 << 0
CTRL_SLU: Final = 1 << 6
CTRL_RST: Final = 1 << 26
CTRL_VME: Final = 1 << 30
CTRL_PHY_RST: Final = 1 << 31
STATUS_FD: Final = 1 << 0
STATUS_LU: Final = 1 << 1
STATUS_SPEED_1000: Final = 2 << 6

INT_TXDW: Final = 1 << 0
INT_TXQE: Final = 1 << 1
INT_LSC: Final = 1 << 2
INT_RXDMT0: Final = 1 << 4
INT_RXO: Final = 1 << 6
INT_RXT0: Final = 1 << 7
INT_MDAC: Final = 1 << 9
INT_ALL: Final = 0x1FFFF

RCTL_EN: Final = 1 << 1
RCTL_UPE: Final = 1 << 3
RCTL_MPE: Final = 1 << 4
RCTL_LPE: Final = 1 << 5
RCTL_BAM: Final = 1 << 15
RCTL_VFE: Final = 1 << 18
RCTL_BSEX: Final = 1 << 25
RCTL_SECRC: Final = 1 << 26
TCTL_EN: Final = 1 << 1

RAH_AV: Final = 1 << 31
_ADDRESS: Final = 0xFFFF_FFF0
_LENGTH: Final = 0x000F_FF80
_INDEX: Final = 0xFFFF
_WHOLE: Final = 0xFFFF_FFFF

WRITABLE: Final[dict[int, int]] = {
    CTRL: 0x79E1_FBE9,
    CTRL_EXT: _WHOLE,
    FCAL: _WHOLE,
    FCAH: 0xFFFF,
    FCT: 0xFFFF,
    VET: 0xFFFF,
    ITR: 0xFFFF,
    RCTL: 0x07FF_FFFE,
    FCTTV: 0xFFFF,
    TXCW: 0xC000_FFFF,
    TCTL: 0x03FF_FFFE,
    TIPG: 0x3FFF_FFFF,
    AIFS: 0xFFFF,
    LEDCTL: _WHOLE,
    PBA: 0x3F,
    FCRTL: 0x8000_FFF8,
    FCRTH: 0xFFF8,
    RDBAL: _ADDRESS,
    RDBAH: _WHOLE,
    RDLEN: _LENGTH,
    RDH: _INDEX,
    RDT: _INDEX,
    RDTR: 0xFFFF,
    RXDCTL: _WHOLE,
    RADV: 0xFFFF,
    TDBAL: _ADDRESS,
    TDBAH: _WHOLE,
    TDLEN: _LENGTH,
    TDH: _INDEX,
    TDT: _INDEX,
    TIDV: 0xFFFF,
    TXDCTL: _WHOLE,
    TADV: 0xFFFF,
    RXCSUM: 0x3FF,
    MANC: _WHOLE,
    WUC: 0xF,
    WUFC: 0xFFFF,
    **{MTA + 4 * index: _WHOLE for index in range(MTA_ENTRIES)},
    **{RAL + 8 * index: _WHOLE for index in range(RAR_ENTRIES)},
    **{RAL + 8 * index + 4: 0x8003_FFFF for index in range(RAR_ENTRIES)},
    **{VFTA + 4 * index: _WHOLE for index in range(VFTA_ENTRIES)},
}
"""Plain registers: the bits of each that the guest may write. Others are handled one by one."""

INITIAL: Final[dict[int, int]] = {
    CTRL: CTRL_FD | 0x200,
    VET: 0x8100,
    PBA: 0x30,
    LEDCTL: 0x0706_8302,
    RXDCTL: 0x0101_0000,
    TXDCTL: 0x0100_0000,
    TCTL: 0x8,
}
"""Those that are not zero after a reset."""
