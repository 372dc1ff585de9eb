"""Seeing that the firmware which a machine needs is on this host, before the machine is built."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sublet.errors import HostRefused, UsageError

if TYPE_CHECKING:
    from sublet.machine import MachineConfig


def provide_firmware(config: MachineConfig) -> MachineConfig:
    """The definition with the folders of firmware that had to be fetched; as it is if none had.

    Raises:
        HostRefused: Something is missing, and cannot be fetched either.
        CorruptImage: What was fetched did not verify.
    """
    from sublet.machine.firmware import missing_packages

    missing = missing_packages(config)
    if not missing:
        return config
    from sublet.cli.messages import ProgressDisplay
    from sublet.guest.firmware import prepare_firmware

    try:
        with ProgressDisplay() as progress:
            folders = tuple(prepare_firmware(package, progress) for package in missing)
    except (UsageError, HostRefused) as error:
        raise HostRefused(
            f"the firmware of Debian's {' and '.join(missing)} is not installed, "
            f"and cannot be fetched: {error.message}",
            remedy=f"{error.remedy} Or install {' and '.join(missing)}, or name an image by --firmware FILE.",
        ) from error
    return replace(config, firmware_folders=folders)
