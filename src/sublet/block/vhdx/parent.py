"""How a differencing VHDX names its parent.

Reference: MS-VHDX 8.0 §2.6.2.6 "Parent Locator".
"""

from __future__ import annotations

import uuid
from pathlib import PurePosixPath

from sublet.block.chain import Chain
from sublet.block.description import BackingReference
from sublet.block.format import Image
from sublet.block.hostfile import HostFile
from sublet.errors import CorruptImage, ImageError


def locator_values(path: str, linkage: uuid.UUID) -> dict[str, str]:
    """The locator of a parent at ``path`` whose data write GUID is ``linkage``."""
    windows = path.replace("/", "\\")
    place = {"absolute_win32_path": windows} if path.startswith("/") else {"relative_path": ".\\" + windows}
    return {"parent_linkage": f"{{{linkage}}}", **place}


def stored_names(values: dict[str, str]) -> list[str]:
    """Paths of the parent with forward slashes, relative ones first."""
    keys = ("relative_path", "absolute_win32_path", "volume_path")
    return [values[key].replace("\\", "/") for key in keys if values.get(key)]


def linkages(values: dict[str, str]) -> set[uuid.UUID]:
    """Data write GUIDs by which the parent may be known.

    Raises:
        CorruptImage: One is no GUID, or there is none.
    """
    found = set()
    for key in ("parent_linkage", "parent_linkage2"):
        try:
            found |= {uuid.UUID(values[key])} if values.get(key) else set()
        except ValueError as error:
            raise CorruptImage(f"VHDX parent locator: {key} is {values[key][:60]!r}, no GUID") from error
    if not found:
        raise CorruptImage("VHDX parent locator: parent_linkage is missing")
    return found


def find_parent(file: HostFile, values: dict[str, str], chain: Chain) -> Image | None:
    """Open the parent: the first named file that exists, else the first named for the error.

    Returns:
        None when the chain opens no parents.

    Raises:
        ImageError: No name is stored, or the parent is missing or not allowed.
    """
    names = stored_names(values)
    if not names:
        raise ImageError(f"{file.path} does not say where its parent is")
    return chain.open_parent(file, _first_that_exists(file, names, chain), "vhdx")


def _first_that_exists(file: HostFile, names: list[str], chain: Chain) -> str:
    """An absolute Windows path means nothing here, but its last part may lie beside the child."""
    for name in [*names, *(PurePosixPath(name).name for name in names)]:
        try:
            if name and chain.resolve(file.path, name).exists():
                return name
        except ImageError:
            continue
    return names[0]


def reference(values: dict[str, str]) -> BackingReference | None:
    """What ``sublet disk info`` shows."""
    names = stored_names(values)
    return BackingReference(names[0].removeprefix("./"), "vhdx") if names else None
