"""MSI with one vector and a 64-bit address.

Reference: PCI Local Bus 3.0 §6.8.1 "MSI Capability Structure".
"""

from __future__ import annotations

from sublet.devices.pci.device import PciDevice
from sublet.hw import MsiSink

CAPABILITY_ID = 0x05
_CONTROL_ENABLE = 0x0001
_CONTROL_64_BIT = 0x0080


class Msi:
    """The capability of one device. All it keeps lies in configuration space.

    Args:
        device: Gets the capability.
        msi: Receives the messages.
    """

    def __init__(self, device: PciDevice, msi: MsiSink) -> None:
        self._device = device
        self._msi = msi
        body = _CONTROL_64_BIT.to_bytes(2, "little") + bytes(10)
        writable = b"\x01\x00" + b"\xfc" + b"\xff" * 9
        self._offset = device.config.add_capability(CAPABILITY_ID, body, writable)

    @property
    def enabled(self) -> bool:
        """Whether the guest uses MSI in place of INTx."""
        return bool(self._device.config.get(self._offset + 2, 2) & _CONTROL_ENABLE)

    def notify(self) -> None:
        """Send the message, if the guest has enabled it. Any thread."""
        if self.enabled and self._device.bus_master:
            config = self._device.config
            address = config.get(self._offset + 4, 8)
            self._msi.signal(address, config.get(self._offset + 12, 2))

    def reset(self) -> None:
        """Disabled; address and data keep nothing."""
        self._device.config.set(self._offset + 2, 2, _CONTROL_64_BIT)
        self._device.config.set(self._offset + 4, 8, 0)
        self._device.config.set(self._offset + 12, 2, 0)
