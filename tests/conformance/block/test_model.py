"""Random sequences of operations on every format, against plain bytes."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tests.conformance.block.variants import VARIANTS, Variant

from sublet.block import BlockStatus, Image, create_image, open_image
from sublet.block.hostfile import OsFiles
from sublet.errors import UsageError

MIB = 1 << 20
SIZE = 3 * MIB + 4096
ALIGNED = st.integers(0, SIZE // 4096).map(lambda count: count * 4096)
ANY = st.integers(0, SIZE)
LENGTHS = st.one_of(st.sampled_from([1, 511, 512, 4096, 65536, MIB]), st.integers(1, 5000))
SETTINGS = settings(
    max_examples=6,
    stateful_step_count=25,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


class DiskMachine(RuleBasedStateMachine):
    """A disk, and the bytes that it must hold."""

    variant: ClassVar[Variant]

    @initialize(seed=st.integers(0, 1000))
    def create(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.folder = Path(tempfile.mkdtemp()).resolve()
        self.files = OsFiles(sync=False)
        self.path = self.folder / f"disk.{self.variant.format}"
        self.model = bytearray(SIZE)
        parent = self.create_parent() if self.variant.parent else None
        create_image(
            self.path,
            SIZE,
            format=self.variant.format,
            options=self.variant.options,
            backing=parent,
            backing_format=self.variant.parent or None,
            files=self.files,
        )
        self.image = self.open()

    def create_parent(self) -> Path:
        """A parent that is shorter than the disk, and holds something."""
        path = self.folder / f"base.{self.variant.parent}"
        size = 2 * MIB if self.variant.format in ("qcow2", "vhdx", "vhd") else SIZE
        options = self.variant.parent_options
        create_image(path, size, format=self.variant.parent, options=options, files=self.files)
        with open_image(path, format=self.variant.parent, files=self.files) as image:
            data = self.rng.randbytes(MIB)
            image.write(MIB // 2, data)
            self.model[MIB // 2 : MIB // 2 + MIB] = data
        return path

    def open(self, *, readonly: bool = False) -> Image:
        return open_image(self.path, format=self.variant.format, files=self.files, readonly=readonly)

    def clip(self, offset: int, size: int) -> tuple[int, int]:
        offset = min(offset, len(self.model))
        return offset, min(size, len(self.model) - offset)

    @rule(offset=ANY, size=LENGTHS)
    def write(self, offset: int, size: int) -> None:
        offset, size = self.clip(offset, size)
        data = self.rng.randbytes(size)
        self.image.write(offset, data)
        self.model[offset : offset + size] = data

    @rule(offset=st.one_of(ANY, ALIGNED), size=LENGTHS, unmap=st.booleans())
    def write_zeroes(self, offset: int, size: int, unmap: bool) -> None:
        offset, size = self.clip(offset, size)
        self.image.write_zeroes(offset, size, unmap=unmap)
        self.model[offset : offset + size] = bytes(size)

    @rule(offset=st.one_of(ANY, ALIGNED), size=LENGTHS)
    def discard(self, offset: int, size: int) -> None:
        offset, size = self.clip(offset, size)
        self.image.discard(offset, size)
        self.model[offset : offset + size] = self.image.read(offset, size)

    @rule()
    def flush(self) -> None:
        self.image.flush()

    @rule(size=ALIGNED, more=st.sampled_from([0, MIB, 5 * MIB]))
    def resize(self, size: int, more: int) -> None:
        new = max(4096, size + more)
        try:
            self.image.resize(new)
        except UsageError:
            return
        self.model.extend(bytes(max(0, new - len(self.model))))
        del self.model[new:]

    @rule(readonly=st.booleans())
    def reopen(self, readonly: bool) -> None:
        self.image.close()
        if readonly:
            with self.open(readonly=True) as image:
                assert self.same(image)
                assert not image.check().errors
        self.image = self.open()

    @rule()
    def look_at_the_map(self) -> None:
        extents = list(self.image.extents())
        assert sum(extent.size for extent in extents) == self.image.size
        for extent in extents:
            if extent.status is BlockStatus.ZERO:
                assert not any(self.model[extent.offset : extent.offset + extent.size])

    @rule()
    def check(self) -> None:
        self.image.flush()
        report = self.image.check()
        assert not report.errors, report.findings

    @rule(offset=ANY, size=LENGTHS)
    def read(self, offset: int, size: int) -> None:
        offset, size = self.clip(offset, size)
        assert self.image.read(offset, size) == self.model[offset : offset + size]

    @invariant()
    def holds_the_model(self) -> None:
        if hasattr(self, "image"):
            assert self.same(self.image)

    def same(self, image: Image) -> bool:
        return image.size == len(self.model) and image.read(0, image.size) == self.model

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            if hasattr(self, "image"):
                self.image.close()
            shutil.rmtree(self.folder)


@pytest.mark.parametrize("name", VARIANTS)
def test_random_operations_match_plain_bytes(name: str) -> None:
    machine = type("Machine", (DiskMachine,), {"variant": VARIANTS[name]})
    run_state_machine_as_test(machine, settings=SETTINGS)
