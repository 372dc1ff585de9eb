"""virtio 1.2: the split virtqueue, the PCI transport, and a folder a device."""

from __future__ import annotations

from sublet.devices.virtio.device import Transport, VirtioDevice
from sublet.devices.virtio.pci_transport import VirtioPci
from sublet.devices.virtio.queue import DescriptorChain, Virtqueue

__all__ = ["DescriptorChain", "Transport", "VirtioDevice", "VirtioPci", "Virtqueue"]
