"""The IDE function of a PIIX3 or PIIX4: two channels at the ports of the PC/AT, and their bus masters.

Reference: Intel 82371FB/82371SB (PIIX3) §2.4 "PCI configuration registers, IDE interface (function 1)";
Intel 82371AB (PIIX4) §5.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sublet.devices.pci import Bar, BarKind, PciDevice
from sublet.devices.storage.bus_master import REGISTERS
from sublet.devices.storage.ide_channel import IdeChannel
from sublet.devices.storage.taskfile import Drive
from sublet.hw import Executor, GuestMemory, IrqLine, ReadAhead

CHANNELS: Final = 2
DRIVES_A_CHANNEL: Final = 2
COMMAND_BASES: Final = (0x1F0, 0x170)
CONTROL_BASES: Final = (0x3F6, 0x376)
IRQS: Final = (14, 15)

PIIX3_DEVICE: Final = 0x7010
PIIX4_DEVICE: Final = 0x7111
_INTEL: Final = 0x8086
_CLASS: Final = 0x010180
"""IDE; both channels fixed to the compatible ports; bus master."""
_IDETIM: Final = (0x40, 0x42)
_DECODE_ENABLE: Final = 0x8000
_SIDETIM, _UDMACTL, _UDMATIM = 0x44, 0x48, 0x4A


class PiixIde(PciDevice):
    """Up to four drives: device 0 and 1 of the first channel, then of the second.

    The machine puts ``channels[i]`` at ``COMMAND_BASES[i]`` (eight ports) and ``channels[i].control`` at
    ``CONTROL_BASES[i]`` (one port).

    Deviation: those ports always answer, whether or not IDETIM and the command register enable them:
    systems without PCI expect them, and no other device wants them. IDETIM has its enable bits set from
    the start, as firmware leaves it.

    Args:
        drives: At most four; None where a place is empty.
        irqs: IRQ 14 and 15 (edge).
        memory: For DMA.
        executor: Where host work runs: each channel's one after the other, so on a thread each none waits.
        device_id: ``PIIX3_DEVICE`` or ``PIIX4_DEVICE``.
        data_ports: Of both channels, or none: see `IdeChannel`.
    """

    def __init__(
        self,
        drives: Sequence[Drive | None],
        irqs: Sequence[IrqLine],
        memory: GuestMemory,
        executor: Executor,
        *,
        device_id: int = PIIX3_DEVICE,
        data_ports: Sequence[ReadAhead] = (),
    ) -> None:
        super().__init__(vendor_id=_INTEL, device_id=device_id, class_code=_CLASS)
        places = [*drives, None, None, None, None][: CHANNELS * DRIVES_A_CHANNEL]
        self.channels = tuple(
            IdeChannel(
                places[2 * i : 2 * i + 2], irqs[i], memory, executor, data_ports[i] if data_ports else None
            )
            for i in range(CHANNELS)
        )
        self.add_bar(Bar(4, BarKind.IO, CHANNELS * REGISTERS, self))
        self._define_timing()

    def _define_timing(self) -> None:
        for offset in _IDETIM:
            self.config.define(offset, 2, _DECODE_ENABLE, 0xFFFF)
        self.config.define(_SIDETIM, 1, 0, 0xFF)
        self.config.define(_UDMACTL, 1, 0, 0x0F)
        self.config.define(_UDMATIM, 2, 0, 0x3333)

    def pio_read(self, offset: int, size: int) -> int:
        """The bus masters' ports, eight a channel."""
        return self.channels[offset // REGISTERS].read_bus_master(offset % REGISTERS, size)

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """The bus masters' ports."""
        self.channels[offset // REGISTERS].write_bus_master(offset % REGISTERS, size, value)

    def reset(self) -> None:
        """Power-on state, after the host work in flight."""
        super().reset()
        self._define_timing()
        for channel in self.channels:
            channel.reset()

    def save_state(self) -> dict[str, Any]:
        """Configuration space and both channels."""
        return super().save_state() | {"channels": [channel.save_state() for channel in self.channels]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state`` on a function with the same drives."""
        super().load_state(state)
        for channel, saved in zip(self.channels, state["channels"], strict=True):
            channel.load_state(saved)

    def close(self) -> None:
        """Flush and close the media."""
        for channel in self.channels:
            channel.close()
