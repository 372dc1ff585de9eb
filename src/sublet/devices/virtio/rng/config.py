"""Constants of the entropy device, which has no features and no configuration.

Reference: virtio 1.2 §5.4 "Entropy Device".
"""

from __future__ import annotations

DEVICE_TYPE = 4
PCI_CLASS = 0x00FF00
