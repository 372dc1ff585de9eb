"""Disk, CD and floppy controllers of the PC."""

from __future__ import annotations

from sublet.devices.storage.ahci import Ich9Ahci
from sublet.devices.storage.ata import AtaDisk
from sublet.devices.storage.atapi import AtapiCd
from sublet.devices.storage.fdc import FloppyController
from sublet.devices.storage.floppy import FloppyDrive
from sublet.devices.storage.ide import PiixIde

__all__ = ["AtaDisk", "AtapiCd", "FloppyController", "FloppyDrive", "Ich9Ahci", "PiixIde"]
