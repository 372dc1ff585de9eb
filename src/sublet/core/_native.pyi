"""The Rust core, as Python sees it. Only ``sublet.core`` imports this module."""

from array import array
from collections.abc import Callable, Sequence
from typing import Final, final

from sublet.core.exceptions import GuestFault as GuestFault
from sublet.core.exceptions import HostError as HostError
from sublet.core.exceptions import InternalError as InternalError
from sublet.core.exceptions import InvalidError as InvalidError
from sublet.core.exceptions import MemoryRangeError as MemoryRangeError
from sublet.core.exceptions import NativeError as NativeError
from sublet.core.exceptions import UnsupportedError as UnsupportedError

# What the core raises, defined in Python: each is also a class of ``sublet.errors``.
# Exit reasons (Exit.reason)
EXIT_PIO_IN: Final[int]
EXIT_PIO_OUT: Final[int]
EXIT_MMIO_READ: Final[int]
EXIT_MMIO_WRITE: Final[int]
EXIT_HLT: Final[int]
EXIT_HYPERCALL: Final[int]
EXIT_SHUTDOWN: Final[int]
EXIT_INTERRUPTED: Final[int]
EXIT_INTERRUPT_WINDOW: Final[int]
EXIT_SYSTEM_RESET: Final[int]
EXIT_INTERNAL_ERROR: Final[int]

@final
class RamBlock:
    """Zero-filled host memory that backs guest RAM (a memfd)."""
    def __init__(self, size: int) -> None: ...
    @property
    def size(self) -> int: ...
    def fileno(self) -> int: ...

@final
class GuestMemory:
    """All RAM of one VM, by guest-physical address. Little-endian integers."""
    def read(self, gpa: int, size: int) -> bytes: ...
    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None: ...
    def read_into(self, gpa: int, buffer: bytearray | memoryview) -> None: ...
    def gather(self, segments: Sequence[tuple[int, int]]) -> bytes:
        """Ranges, (gpa, size) each, one after the other."""
    def scatter(self, segments: Sequence[tuple[int, int]], data: bytes | bytearray | memoryview) -> int:
        """Store into ranges until they or the data end; returns the bytes stored."""
    def read_u16(self, gpa: int) -> int: ...
    def read_u32(self, gpa: int) -> int: ...
    def read_u64(self, gpa: int) -> int: ...
    def write_u16(self, gpa: int, value: int) -> None: ...
    def write_u32(self, gpa: int, value: int) -> None: ...
    def write_u64(self, gpa: int, value: int) -> None: ...
    def slots(self) -> list[tuple[int, int, int, bool]]:
        """(slot, gpa, size, readonly), by address."""
    @staticmethod
    def alone(ram: RamBlock) -> GuestMemory:
        """RAM from address 0 on that is no machine's, for tests."""
    def packet_queue(
        self,
        size: int,
        desc_table: int,
        avail_ring: int,
        used_ring: int,
        event_idx: bool,
        indirect: bool,
        positions: tuple[int, int, int],
    ) -> PacketQueue:
        """A network card's virtqueue at these addresses; GuestFault where none can be."""

@final
class PacketQueue:
    """A virtqueue that carries packets; ``sublet.hw.PacketQueue``."""
    def put(self, packets: Sequence[bytes], header_size: int, merge: bool) -> tuple[int, int, int, bool]: ...
    def take(self, limit: int, budget: int, least: int, most: int) -> list[bytes | None]: ...
    def give_back(self, done: int) -> bool: ...
    def enable_notifications(self) -> bool: ...
    def disable_notifications(self) -> None: ...
    def save_state(self) -> dict[str, int]: ...

@final
class InPlace:
    """The way past a disk's format: what of a disk is read and overwritten where it lies in a host file.

    Any thread may call any method. What cannot be done here, a mistake among it, is answered with None,
    False or 0, and is for the format to do; so is everything while the gate is shut. Offsets and sizes are
    bytes of the disk. The interpreter lock is released while bytes move.
    """
    @staticmethod
    def flat(fd: int | None, size: int, writable: bool) -> InPlace:
        """Byte n of the disk is byte n of the file. Without a file nothing is done here."""
    @staticmethod
    def clusters(fd: int | None, size: int, bits: int, extended: bool, writable: bool) -> InPlace:
        """QCOW2's clusters of ``1 << bits`` bytes, named by the tables that are attached."""
    @staticmethod
    def places(fd: int | None, size: int, bits: int) -> InPlace:
        """Clusters of ``1 << bits`` bytes, named by tables of ``PLACES`` entries in QCOW2's shape, anywhere in
        the file; read-only at first."""
    PLACES: int
    def reads_only(self) -> InPlace:
        """The same, for reads."""
    def read(self, offset: int, size: int) -> bytes | None: ...
    def readinto(self, offset: int, buffer: bytearray | memoryview) -> bool: ...
    def write(self, offset: int, data: bytes | bytearray | memoryview) -> bool: ...
    def resize(self, size: int) -> None:
        """The disk has another size. The gate is shut."""
    def set_writable(self, writable: bool) -> None:
        """Whether anything is overwritten here. The gate is shut, or nobody else has the object yet."""
    def attach(self, index: int, table: array[int], own: bool) -> None:
        """Let an L2 table answer for L1 entry ``index``; ``own``: no other L1 table names it.

        It is kept in memory until it is detached, and changes by ``store_entries`` alone.
        """
    def detach(self, index: int) -> None: ...
    def clear(self) -> None:
        """Detach all tables."""
    def take_used(self, index: int) -> bool:
        """Whether the table of L1 entry ``index`` was looked at since the last call."""
    def enter(self) -> None:
        """Count in a write that is done elsewhere, to a place that was looked up under the format's lock."""
    def leave(self) -> None:
        """Count it out."""
    @property
    def busy(self) -> bool:
        """Whether anything is under way that looked its place up before."""
    def shut(self) -> None:
        """Let nothing begin, and wait until nothing is under way. Calls add up."""
    def open(self) -> None:
        """Undo one ``shut``."""
    def serve(
        self, memory: object, ring: tuple[int, int, int, int, bool, int, int], limit: int, *, wait: bool = True
    ) -> int:
        """Serve plain reads and writes from a virtio block queue's next request on; returns how many.

        Without ``wait`` only small reads of what the host has in memory, so that a vCPU's thread may do it.

        ``ring``: size, descriptor table, available ring, used ring, indirect tables allowed, positions of
        the next chain to take and to return. The caller moves both on. ``memory`` has to be the core's.
        """
    def transfer_segments(
        self, memory: object, offset: int, segments: Sequence[tuple[int, int]], to_disk: bool
    ) -> bool:
        """Move bytes between the disk and ranges of the core's ``GuestMemory``, (gpa, size) each."""

def store_entries(table: array[int], start: int, values: array[int]) -> None:
    """Change entries of a table that ``InPlace`` may be looking at."""

@final
class Exit:
    """One exit; a fresh object each time."""
    reason: int
    port: int        # PIO
    address: int     # MMIO: guest-physical
    size: int        # 1, 2, 4 or 8
    data: int        # PIO_OUT, MMIO_WRITE; hypercall number; internal error code
    args: tuple[int, int, int, int]

@final
class Engine:
    def __init__(self, name: str) -> None:
        """``"kvm"`` or ``"translate"``; HostError/UnsupportedError when it cannot be used."""
    @property
    def name(self) -> str: ...
    def create_vm(self) -> Vm: ...
    def supported_cpuid(self) -> list[tuple[int, int, bool, int, int, int, int]]:
        """(leaf, subleaf, has_subleaf, eax, ebx, ecx, edx)"""

@final
class Vm:
    @property
    def memory(self) -> GuestMemory: ...
    def set_memslot(self, slot: int, gpa: int, size: int, ram: RamBlock, ram_offset: int = 0,
                    readonly: bool = False, log_dirty: bool = False, smm: bool = False) -> None:
        """``smm``: what vCPUs in system-management mode alone find there, in place of what all others do."""
    def remove_memslot(self, slot: int) -> None: ...
    def change_memslots(
        self, gone: Sequence[int], new: Sequence[tuple[int, int, int, RamBlock, int, bool, bool]]
    ) -> None:
        """Remove slots and add or replace others at one moment: no vCPU finds anything in between.

        ``new``: slot, gpa, size, ram, ram_offset, readonly, smm. InvalidError: nothing has changed.
        """
    def has_smm(self) -> bool:
        """Whether vCPUs take SMIs (as messages of that delivery mode); KVM's do not here."""
    def set_smm_open(self, open: bool) -> None:
        """Let all vCPUs find the memory that ``smm`` memslots are, or those in the mode alone (at first)."""
    def set_a20(self, open: bool) -> None:
        """Open or close the A20 gate; UnsupportedError for closing it under KVM, which has none."""
    def take_dirty_log(self, slot: int) -> bytes:
        """One bit a 4 KiB page, least significant first; cleared by the call."""
    def create_irqchip(self) -> None: ...
    def add_platform_timers(self) -> None:
        """RTC/CMOS at ports 0x70-0x71 (IRQ 8) and the ACPI PM timer at 0x608, answered in the core."""
    def connect_legacy_timers(self, connected: bool) -> None:
        """Let the 8254 and the RTC drive IRQ 0 and 8, as they do at first, or take them off."""
    def write_cmos(self, bytes: Sequence[tuple[int, int]]) -> None:
        """Set bytes of the CMOS RAM, as (index, value), 0x0e to 0x7f; after ``add_platform_timers``."""
    def read_cmos(self) -> bytes:
        """All 128 bytes of the CMOS RAM; those of the clock, below 0x0e, are stale."""
    def offer_port_data(self, port: int, data: bytes) -> None:
        """Let the next reads of a port give these bytes without an exit, all but the last read."""
    def take_back_port_data(self, port: int) -> int:
        """How many of the offered bytes were not read; they are no longer offered."""
    def set_irq_line(self, gsi: int, level: bool) -> None: ...
    def signal_msi(self, address: int, data: int) -> None: ...
    def create_vcpu(self, index: int) -> Vcpu: ...
    def statistics(self) -> dict[str, int]: ...

@final
class Vcpu:
    def run(self) -> Exit:
        """Run guest code until an exit; the interpreter lock is released meanwhile."""
    def complete_read(self, data: int) -> None: ...
    def kick(self) -> None:
        """From any thread (also while run() is active elsewhere): make run() return EXIT_INTERRUPTED."""
    def get_regs(self) -> dict[str, int]:
        """rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8..r15, rip, rflags."""
    def set_regs(self, **regs: int) -> None:
        """Those named; the others keep their values."""
    def get_sregs(self) -> dict[str, object]:
        """cr0 cr2 cr3 cr4 cr8 efer apic_base: int; gdt, idt: (base, limit);
        es cs ss ds fs gs ldtr tr: (selector, base, limit, attributes), attributes as descriptor
        bits 40-55 with bits 11:8 zero, and bit 16 set when unusable."""
    def set_sregs(self, **sregs: object) -> None: ...
    def get_xsave(self) -> bytes: ...
    def set_xsave(self, area: bytes) -> None: ...
    def get_msrs(self, indices: Sequence[int]) -> list[int]: ...
    def set_msrs(self, entries: Sequence[tuple[int, int]]) -> None: ...
    def get_debug_regs(self) -> tuple[int, int, int, int, int, int]: ...
    def set_debug_regs(self, regs: Sequence[int]) -> None: ...
    def set_cpuid(self, entries: Sequence[tuple[int, int, bool, int, int, int, int]]) -> None: ...
    def get_events(self) -> dict[str, bool]:
        """interrupt_shadow, nmi_pending, nmi_masked, halted, waiting_for_startup, smm, smi_pending,
        smm_inside_nmi. SMBASE is MSR 0x9e."""
    def set_events(self, **events: bool) -> None: ...
    def inject_interrupt(self, vector: int) -> None: ...
    def ready_for_interrupt(self) -> bool: ...
    def request_interrupt_window(self, on: bool) -> None: ...
    def inject_nmi(self) -> None: ...
    def start_profile(self, hertz: int) -> None:
        """Count where the guest is, from the next run on; UnsupportedError on engines that cannot."""
    def take_profile(self) -> list[tuple[int, int, int, bool, int]]:
        """(address, page-table base or 0, privilege level, in translated code, times) since the last call."""
    def statistics(self) -> dict[str, int]: ...

@final
class AesXts:
    """AES in XTS mode, by sectors of 512 bytes, whose numbers have 64 bits."""
    def __init__(self, key: bytes) -> None:
        """Both keys, one behind the other: 32 or 64 bytes."""
    def encrypt(self, sector: int, data: bytes | bytearray | memoryview) -> bytes:
        """Whole sectors, the first of which has the number ``sector``."""
    def decrypt(self, sector: int, data: bytes | bytearray | memoryview) -> bytes: ...

@final
class NatEngine:
    """A router in user space with one network behind it; docs/design/nat.md."""
    def __init__(self, config: dict[str, object], forwards: Sequence[tuple[str, str, str | None, int]]) -> None:
        """``config``: as ``sublet.net.nat.config`` makes it; ``forwards``: (tcp or udp, host address
        and port, machine or None, port). HostError when a port cannot be had."""
    def send(self, packets: Sequence[bytes]) -> None:
        """Packets of the guest, each behind its 12-byte header; what is wrong is dropped and counted."""
    def take(self, limit: int, timeout_ms: int | None) -> list[bytes]:
        """At most ``limit`` packets for the guest; waits for the first. None at the timeout and once closed.

        Sockets are served by the thread that waits here or for room; there is to be one."""
    def wait_for_room(self) -> None:
        """Serve sockets until ``has_room``, or return at once if it was called meanwhile; also once closed."""
    def has_room(self) -> None:
        """The guest takes packets again. Any thread."""
    def set_segmentation(self, v4: bool, v6: bool) -> None:
        """Whether the guest takes TCP segments up to 64 KiB, by IP version."""
    def closed(self) -> bool: ...
    def leases(self) -> list[tuple[str, str, str, int]]:
        """(MAC, address, name, seconds left)"""
    def flows(self) -> list[tuple[str, str, str, str, int, int]]:
        """(protocol, guest, remote, state, bytes from the guest, bytes to it)"""
    def statistics(self) -> dict[str, int]: ...
    def take_denials(self) -> list[tuple[str, str, int]]:
        """(protocol, address or name, port) of some refusals since the last call, at most five a second."""
    def close(self) -> None:
        """Whoever waits comes back, and nothing moves any more. Idempotent."""

def copy_pieces(
    offset: int,
    pieces: Sequence[tuple[int, int, int]],
    granularity: int,
    place: Callable[[list[tuple[int, int]]], Sequence[tuple[int, int, int]]],
) -> None:
    """Copy what files hold of a disk from ``offset`` on, without the interpreter; blocks of zeroes are left out.

    Pieces are (descriptor, offset in the file, bytes), in the disk's order; below 0 there is nothing to copy.
    ``place`` turns ranges of the disk, (offset, bytes) each, into pieces that cover them in order; it is called
    by this thread, in the disk's order. OSError of the host, and what ``place`` raises."""
def core_version() -> str: ...
