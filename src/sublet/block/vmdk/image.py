"""An open VMDK disk: a descriptor, and the extents that it puts together."""

from __future__ import annotations

import secrets
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from sublet.block.chain import Chain
from sublet.block.clusters import ReadBelow
from sublet.block.description import (
    BackingReference,
    CheckReport,
    ImageInfo,
    MapExtent,
)
from sublet.block.format import HEAD_SIZE, Image, read_parent
from sublet.block.hostfile import HostFile, HostFiles, read_structure
from sublet.block.pieces import Piece
from sublet.block.places import Places
from sublet.block.vmdk import descriptor as descriptors
from sublet.block.vmdk.cowd import CowdGrains
from sublet.block.vmdk.descriptor import MAX_SIZE, NO_PARENT, Descriptor, ExtentLine, ExtentType
from sublet.block.vmdk.extent import Extent, FlatExtent, ZeroExtent, check_capacity, not_alone
from sublet.block.vmdk.grains import HostedGrains
from sublet.block.vmdk.layout import (
    COWD_MAGIC,
    HOSTED_MAGIC,
    SECTOR,
    CowdHeader,
    HostedHeader,
    sectors,
)
from sublet.block.vmdk.parent import FORMAT_NAME, parent_content_id, parent_reference
from sublet.block.vmdk.resize import resize
from sublet.block.vmdk.sesparse import SeSparseExtent
from sublet.block.vmdk.stream import StreamExtent, read_footer
from sublet.errors import CorruptImage, UnsupportedImage, UsageError


class VmdkImage(Image):
    """A VMDK disk of any kind that a file can hold.

    Args:
        path: The descriptor, or the extent that holds it.
        readonly: Refuse writes.
        chain: Opens extents and the parent.
        check: Open no parent, and tolerate extents that are too short.

    Raises:
        HostRefused: A file cannot be opened.
        CorruptImage: Damaged, or the parent has changed; the message names the field.
        UnsupportedImage: A kind of extent that we do not read, or not write.
        ImageError: An extent is not where the image may refer to.
    """

    format = FORMAT_NAME

    def __init__(self, path: Path, *, readonly: bool, chain: Chain, check: bool = False) -> None:
        super().__init__(path, 0, readonly=readonly)
        self._chain = chain
        self._lenient = check
        self._parent: Image | None = None
        self._open_files: dict[Path, HostFile] = {}
        self._sparse_files: set[Path] = set()
        self._touched = False
        self._unflushed: set[Extent] = set()
        self._past: set[Extent] = set()
        """What may have changed without having been noted as unflushed."""
        self._flush_lock = threading.Lock()
        self._descriptor_changed = False
        self._file = self._open_file(path.resolve(), readonly)
        try:
            self._load()
            self._places = self._open_places()
            if self.descriptor.parent_hint is not None and not check:
                self._open_parent()
        except BaseException:
            self._close_files()
            raise

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor, with changes."""
        return self._descriptor

    @property
    def backing(self) -> Image | None:
        """The parent."""
        return self._parent

    @property
    def disk_extents(self) -> list[Extent]:
        """In the disk's order."""
        return self._extents

    def info(self) -> ImageInfo:
        """Kind, sizes, identities and extents."""
        files = list(self._open_files.values())
        sizes = [extent.cluster_size for extent in self._extents if extent.cluster_size]
        hint = self.descriptor.parent_hint
        return ImageInfo(
            self.format,
            self.path,
            self.size,
            sum(file.size() for file in files),
            sum(file.allocated() for file in files),
            cluster_size=max(sizes, default=None),
            backing=None if hint is None else BackingReference(hint, self.format),
            dirty=any(extent.unclean for extent in self._extents),
            details={
                "create_type": self.descriptor.create_type,
                "cid": f"{self.descriptor.content_id:08x}",
                "parent_cid": f"{self.descriptor.parent_content_id:08x}",
                "extents": [
                    {"type": line.type.value, "size": line.sectors * SECTOR, "file": line.filename}
                    for line in self.descriptor.extents
                ],
            },
        )

    def set_backing(self, backing: BackingReference | None) -> None:
        """Name another parent, which must be a VMDK disk too, or none."""
        self._check_writable(0, 0)
        self.flush()
        with self._lock:
            parent = None
            content_id = NO_PARENT
            if backing is not None:
                content_id = parent_content_id(self.path, backing, self._chain.files)
                parent = self._chain.open_parent(self._file, backing.path, self.format)
            if self._parent is not None:
                self._parent.close()
            self._parent = parent
            self._descriptor.set("parentCID", f"{content_id:08x}", quoted=False)
            if backing is None:
                self._descriptor.remove("parentFileNameHint")
            else:
                self._descriptor.set("parentFileNameHint", backing.path)
            self._set_below()
            self._store_descriptor()
            self._file.flush()

    def make_empty(self) -> None:
        """Let the parent, as it now is, answer for everything again; compressed grains stay."""
        self._check_writable(0, 0)
        hint = self.descriptor.parent_hint
        if hint is None:
            return
        self.flush()
        with self._alone():
            for extent in self._extents:
                if isinstance(extent, HostedGrains | CowdGrains):
                    extent.clear()
        self.set_backing(BackingReference(hint, self.format))

    # Opening.

    def _open_file(self, path: Path, readonly: bool) -> HostFile:
        """A host file; once, however many extents it holds."""
        file = self._open_files.get(path)
        if file is None:
            file = self._chain.open_file(path, readonly=readonly)
            self._open_files[path] = file
        return file

    def _load(self) -> None:
        """Read descriptor and extents."""
        magic = self._file.read(0, 4)
        if magic == HOSTED_MAGIC:
            self._load_embedded()
        elif magic == COWD_MAGIC:
            raise not_alone(self.path)
        elif descriptors.probe(self._file.read(0, min(HEAD_SIZE, self._file.size()))):
            self._descriptor_text = self._file.read(0, min(self._file.size(), MAX_SIZE))
            self._descriptor_at, self._descriptor_room = 0, MAX_SIZE
            self._descriptor = Descriptor.decode(self._descriptor_text, str(self.path))
            self._extents = []
            for number, line in enumerate(self._descriptor.extents):
                self._extents.append(self._open_extent(line, self._below(number)))
        else:
            raise CorruptImage(f"{self.path}: neither a VMDK extent nor a descriptor")
        self._lay_out()
        self._size = self._starts[-1]
        # Compressed grains out of order are legal, but readers of streams do not expect them.
        self.sequential = any(isinstance(extent, StreamExtent) for extent in self._extents)

    def _open_places(self) -> Places | None:
        """The way past the format, for a disk that is one extent with its own descriptor."""
        extent = self._extents[0]
        if not (self.is_embedded and isinstance(extent, HostedGrains)):
            return None
        places = extent.places = Places(extent.file, self._size, extent.cluster_size)
        self.in_place = places.in_place
        self._past = {extent}
        return places

    def _load_embedded(self) -> None:
        header = HostedHeader.parse(self._file.read(0, SECTOR), str(self.path))
        if not header.descriptor_offset or not header.descriptor_size:
            raise not_alone(self.path)
        size = min(header.descriptor_size * SECTOR, MAX_SIZE)
        self._descriptor_text = read_structure(
            self._file, header.descriptor_offset * SECTOR, size, "descriptor"
        )
        self._descriptor_at, self._descriptor_room = header.descriptor_offset * SECTOR, size
        self._descriptor = Descriptor.decode(self._descriptor_text, str(self.path))
        self._extents = [self._open_hosted(self._file, None, self._below(0))]

    def _below(self, number: int) -> ReadBelow | None:
        """Reads what the parent holds of the extent with that number."""
        if self._descriptor.parent_hint is None:
            return None

        def read_below(offset: int, view: memoryview) -> None:
            read_parent(self._parent, self._starts[number] + offset, view)

        return read_below

    def _set_below(self) -> None:
        for number, extent in enumerate(self._extents):
            if isinstance(extent, HostedGrains | CowdGrains | StreamExtent | SeSparseExtent):
                extent.below = self._below(number)

    def _open_extent(self, line: ExtentLine, below: ReadBelow | None) -> Extent:
        size = line.sectors * SECTOR
        if line.type is ExtentType.ZERO or line.access == "NOACCESS":
            return ZeroExtent(size)
        path = self._chain.resolve(self.path, line.filename)
        self._refuse_shared(path, line)
        readonly = self.readonly or line.access != "RW"
        file = self._open_file(path, readonly)
        if line.type in (ExtentType.FLAT, ExtentType.VMFS):
            return self._open_flat(file, line)
        if line.type is ExtentType.SE_SPARSE:
            if not readonly:
                raise UnsupportedImage(f"{path}: a seSparse extent", remedy="Open it read-only.")
            return _fitting(SeSparseExtent(file, below=below), size, path)
        if file.read(0, 4) == COWD_MAGIC:
            header = CowdHeader.parse(file.read(0, CowdHeader.SIZE), str(path))
            check_capacity(header.capacity, line.sectors, path)
            return CowdGrains(file, header, size=size, lock=self._lock, below=below)
        return self._open_hosted(file, size, below)

    def _refuse_shared(self, path: Path, line: ExtentLine) -> None:
        """Refuse an extent in which a guest could write the descriptor or another extent's tables.

        Raises:
            CorruptImage: It is in the descriptor's file, or in one that another sparse extent has.
        """
        sparse = line.type not in (ExtentType.FLAT, ExtentType.VMFS)
        others = self._open_files if sparse else self._sparse_files
        if path == self._file.path or path in others:
            raise CorruptImage(f"{self.path}: the extent {line.filename} is in a file that is in use already")
        if sparse:
            self._sparse_files.add(path)

    def _open_flat(self, file: HostFile, line: ExtentLine) -> Extent:
        base, size = line.offset * SECTOR, line.sectors * SECTOR
        if file.size() < base + size and not self._lenient:
            raise CorruptImage(f"{file.path} has {file.size()} bytes, but its extent ends at {base + size}")
        return FlatExtent(file, base, size, fixed=line.type is ExtentType.VMFS)

    def _open_hosted(self, file: HostFile, size: int | None, below: ReadBelow | None) -> Extent:
        """A hosted sparse extent; ``size`` is what the descriptor says, if that counts."""
        stored = HostedHeader.parse(file.read(0, SECTOR), str(file.path))
        header = read_footer(file, stored)
        if header.version == 3 and not header.compressed and not file.readonly:
            raise UnsupportedImage(f"{file.path}: it tracks changed blocks", remedy="Open it read-only.")
        if size is not None:
            check_capacity(header.capacity, size // SECTOR, file.path)
        if header.compressed:
            stream = StreamExtent(file, header, stored, lock=self._lock, below=below)
            return stream if size is None else _fitting(stream, size, file.path)
        size = header.capacity * SECTOR if size is None else size
        return HostedGrains(file, header, size=size, lock=self._lock, below=below)

    def _open_parent(self) -> None:
        """Open the parent, and refuse it when its content is not what it was.

        Raises:
            CorruptImage: It is not.
        """
        self._parent = self._chain.open_parent(
            self._file, parent_reference(self.path, self.descriptor), self.format
        )
        if not isinstance(self._parent, VmdkImage):
            return
        found, wanted = self._parent.descriptor.content_id, self.descriptor.parent_content_id
        if found != wanted:
            self._parent.close()
            raise CorruptImage(
                f"{self.path}: parentCID is {wanted:08x}, but {self._parent.path} has CID {found:08x}",
                remedy="Bring back the parent as it was; 'sublet disk rebase --unsafe' takes it as it is.",
            )

    # Image.

    def _parts(self, offset: int, size: int) -> Iterator[tuple[Extent, int, int, int]]:
        """Extents that hold the range: extent, offset in it, bytes, and where the extent starts."""
        while size:
            number = bisect_right(self._starts, offset) - 1
            start = self._starts[number]
            length = min(size, self._starts[number + 1] - offset)
            yield self._extents[number], offset - start, length, start
            offset, size = offset + length, size - length

    def _readinto(self, offset: int, view: memoryview) -> None:
        for extent, place, length, _ in self._parts(offset, len(view)):
            extent.readinto(place, view[:length])
            view = view[length:]

    def _write(self, offset: int, view: memoryview) -> None:
        self._touch()
        for extent, place, length, _ in self._parts(offset, len(view)):
            with self._changing(extent):
                extent.write(place, view[:length])
            view = view[length:]
        if self._places is not None:
            self._places.allow_writes()

    def _write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        self._touch()
        for extent, place, length, _ in self._parts(offset, size):
            with self._changing(extent):
                extent.write_zeroes(place, length, unmap=unmap)

    def _discard(self, offset: int, size: int) -> None:
        self._touch()
        for extent, place, length, _ in self._parts(offset, size):
            with self._changing(extent):
                extent.discard(place, length)

    def _map(self, offset: int, size: int) -> MapExtent:
        extent, place, length, _ = next(self._parts(offset, size))
        found = extent.map(place, length)
        return MapExtent(
            offset=offset,
            size=found.size,
            status=found.status,
            present=found.present,
            host_offset=found.host_offset,
            file=found.file,
            compressed=found.compressed,
        )

    def _stored(self, offset: int, size: int) -> Iterable[Piece]:
        for extent, place, length, _ in self._parts(offset, size):
            yield from extent.stored(place, length)

    @property
    def can_place(self) -> bool:
        """Without a parent, and where every extent takes data in any order."""
        return self.descriptor.parent_hint is None and all(extent.can_place for extent in self._extents)

    def _place(self, offset: int, size: int) -> Iterable[Piece]:
        self._touch()
        for extent, place, length, _ in self._parts(offset, size):
            with self._changing(extent):
                yield from extent.place(place, length)

    @contextmanager
    def _changing(self, extent: Extent) -> Iterator[None]:
        """Note, after the change, that the extent has something to flush."""
        try:
            yield
        finally:
            with self._lock:
                self._unflushed.add(extent)

    def _flush(self) -> None:
        """Flush what has changed: a split disk may have thousands of extents."""
        # A second flush waits for the first, which may be writing what the second one's caller wrote.
        with self._flush_lock:
            if self._descriptor_changed:
                self._descriptor_changed = False
                self._file.flush()
            with self._lock:
                extents, self._unflushed = self._unflushed | self._past, set()
            try:
                for extent in extents:
                    extent.flush()
            except BaseException:
                with self._lock:
                    self._unflushed |= extents
                raise

    def _resize(self, size: int) -> None:
        self._touch()
        with self._lock, self._alone():
            resize(self, size)
            if self._places is not None:
                self._places.resize(self._size)

    def _check_image(self, *, repair: bool) -> CheckReport:
        if not self.readonly:
            self._flush()
        report = CheckReport()
        with self._alone():
            for extent in self._extents:
                extent.check(report, repair=repair)
                if repair:
                    extent.flush()
        return report

    def _alone(self) -> AbstractContextManager[None]:
        """Nobody goes past the format, where anybody does."""
        return nullcontext() if self._places is None else self._places.alone()

    def _close(self) -> None:
        try:
            if not self.readonly:
                for extent in self._extents:
                    if extent not in self._unflushed:
                        extent.finish()
        finally:
            self._close_files()

    def _close_files(self) -> None:
        try:
            for file in self._open_files.values():
                file.close()
        finally:
            if self._parent is not None:
                self._parent.close()

    # Descriptor.

    def _touch(self) -> None:
        """The content is about to change: give it a new identity, so that children notice."""
        if self._touched:
            return
        with self._lock:
            self._touched = True
            self._descriptor.set("CID", f"{secrets.randbelow(NO_PARENT - 1) + 1:08x}", quoted=False)
            self._store_descriptor()

    def _store_descriptor(self) -> None:
        """Write the sectors of the descriptor that changed.

        Raises:
            UsageError: It has grown too long for its place.
        """
        text = self._descriptor.encode()
        embedded = self._descriptor_at > 0
        if len(text) + embedded > self._descriptor_room:
            raise UsageError(f"{self.path}: the descriptor does not fit into {self._descriptor_room} bytes")
        new = text.ljust(self._descriptor_room, b"\0") if embedded else text
        for start in range(0, len(new), SECTOR):
            piece = new[start : start + SECTOR]
            if piece != self._descriptor_text[start : start + SECTOR]:
                self._file.write(self._descriptor_at + start, piece)
        if not embedded and len(new) < len(self._descriptor_text):
            self._file.truncate(len(new))
        self._descriptor_text = new
        self._descriptor_changed = True

    def _lay_out(self) -> None:
        """Work out where each extent starts; the last of ``_starts`` is the disk's end."""
        self._starts = [0]
        for extent in self._extents:
            self._starts.append(self._starts[-1] + extent.size)

    # Resizing, for ``vmdk.resize``.

    @property
    def is_embedded(self) -> bool:
        """Whether the descriptor lies in the extent that it describes."""
        return self._descriptor_at > 0

    def replace_extents(self, lines: list[ExtentLine]) -> None:
        """Take other extent lines, and open what is new in them. Everything is flushed afterwards."""
        self._descriptor.set_extents(lines)
        del self._extents[len(lines) :]
        for number in range(len(self._extents), len(lines)):
            self._extents.append(self._open_extent(lines[number], self._below(number)))
        self._lay_out()
        self._size = self._starts[-1]
        self._store_descriptor()
        self._file.flush()

    @property
    def host_files(self) -> HostFiles:
        """How to come by further files."""
        return self._chain.files

    def forget_file(self, name: str) -> None:
        """Close and remove an extent's file."""
        path = self._chain.resolve(self.path, name)
        file = self._open_files.pop(path, None)
        self._sparse_files.discard(path)
        if file is not None:
            file.close()
        self._chain.files.remove(path)


def _fitting(extent: SeSparseExtent | StreamExtent, size: int, path: Path) -> Extent:
    """An extent of which the disk takes ``size`` bytes."""
    check_capacity(extent.size // SECTOR, sectors(size), path)
    extent.size = size
    return extent
