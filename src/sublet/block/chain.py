"""Backing chains: which parents an image may have, and how they are opened.

An image file names its parent, and an image file is hostile input: a parent may be missing, be the image
itself, or be a file of the host that the guest must not see. So parents are opened here only, read-only, of
a format that is known without looking at their content, and from allowed folders alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from sublet.block.format import Image, ImageFormat
from sublet.block.hostfile import HostFile, HostFiles, Lock, OsFiles
from sublet.block.registry import find_format
from sublet.errors import HostRefused, ImageError, UnsupportedImage

DEPTH_MAXIMUM: Final = 128
"""Images in a chain."""
FOLDERS_VARIABLE: Final = "SUBLET_DISK_FOLDERS"
"""Environment variable: further folders, separated by colons, that parents may be in."""


@dataclass(frozen=True)
class Chain:
    """How an image comes by its host files and parents. Made by ``Chain.start``, grown by ``open_parent``."""

    files: HostFiles
    folders: tuple[Path, ...]
    """Resolved folders: a parent or extent must be in one, or in a folder of one."""
    above: tuple[tuple[int, int], ...] = ()
    """Identities of the images from the top down to this one."""
    lock: Lock | None = None
    """For every file; None: exclusive for writing, else shared."""
    parents: bool = True
    """Whether to open parents at all; without, what they hold reads as zeroes."""
    writable_parent: bool = False
    """Whether to open the next parent for writing; those below it stay as they are."""

    @staticmethod
    def start(
        path: Path,
        *,
        files: HostFiles | None = None,
        folders: Iterable[Path] = (),
        lock: Lock | None = None,
        parents: bool = True,
    ) -> Chain:
        """The chain of the image at ``path``, whose folder is always allowed."""
        named = [Path(part) for part in os.environ.get(FOLDERS_VARIABLE, "").split(":") if part]
        allowed = [path.resolve().parent, *(folder.resolve() for folder in (*folders, *named))]
        return Chain(files or OsFiles(), tuple(dict.fromkeys(allowed)), (), lock, parents)

    def open_file(self, path: Path, *, readonly: bool) -> HostFile:
        """Open a host file of this image."""
        return self.files.open(path, readonly=readonly, lock=self.lock)

    def resolve(self, child: Path, reference: str) -> Path:
        """The file that ``child`` names, relative to its folder.

        Raises:
            ImageError: It is not in an allowed folder, or no plain path.
        """
        if not reference or "\0" in reference:
            raise ImageError(f"{child}: the name of its parent is empty or not a path")
        if reference.startswith("json:"):
            raise UnsupportedImage(f"{child}: its parent is described by {reference[:60]!r}, not named")
        # A symbolic link must not lead out of the allowed folders, so the target counts.
        path = (child.parent / reference.removeprefix("file:")).resolve()
        if not any(path.is_relative_to(folder) for folder in self.folders):
            raise ImageError(
                f"{child} refers to {path}, which is outside the folders that it may refer to",
                remedy=f"If you trust the image, allow {path.parent} with --allow or {FOLDERS_VARIABLE}.",
            )
        return path

    def open_parent(self, child: HostFile, reference: str, format_name: str | None) -> Image | None:
        """Open the parent of an image, for reading only.

        Args:
            child: The image's own file.
            reference: The parent's name as the image has it.
            format_name: Its format as the image has it.

        Returns:
            None when this chain opens no parents.

        Raises:
            ImageError: The parent is missing, not allowed, one of its own descendants, or of a format that
                the image does not name.
            HostRefused: It is in use for writing, or cannot be read.
        """
        if not self.parents:
            return None
        path = self.resolve(child.path, reference)
        format_ = self._format_of_parent(child.path, format_name)
        below = self._below(child)
        if self._identify(child.path, path) in below.above:
            raise ImageError(f"{child.path}: its parent {path} is itself or one of its descendants")
        return format_.open(path, readonly=not self.writable_parent, chain=below)

    def _identify(self, child: Path, path: Path) -> tuple[int, int]:
        try:
            file = self.files.open(path, readonly=True, lock=Lock.NONE)
        except HostRefused as error:
            raise ImageError(
                f"{child} needs its parent {path}, which cannot be opened",
                remedy="Bring it back, or name another with 'sublet disk rebase'.",
            ) from error
        file.close()
        return file.identity

    def _format_of_parent(self, child: Path, name: str | None) -> ImageFormat:
        if name is None:
            raise ImageError(
                f"{child} does not say what format its parent has",
                remedy="Say it with 'sublet disk rebase --unsafe --backing FILE --backing-format FORMAT'.",
            )
        return find_format(name)

    def _below(self, child: HostFile) -> Chain:
        above = (*self.above, child.identity)
        if len(above) >= DEPTH_MAXIMUM:
            raise ImageError(f"{child.path}: its chain of parents is longer than {DEPTH_MAXIMUM}")
        lock = self.lock if self.lock is Lock.NONE or self.writable_parent else Lock.SHARED
        return replace(self, above=above, lock=lock, writable_parent=False)
