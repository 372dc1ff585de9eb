"""The function: registers, rings and the pin.

Reference: Intel 317453-006, chapters 3 "Receive and Transmit Description" and 13 "Register Descriptions".
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from sublet.devices.net.e1000 import receive as rx
from sublet.devices.net.e1000 import registers as r
from sublet.devices.net.e1000 import transmit as tx
from sublet.devices.net.e1000.eeprom import Eeprom, make_content
from sublet.devices.net.e1000.interrupts import Interrupts
from sublet.devices.net.e1000.phy import Phy
from sublet.devices.pci.device import Bar, BarKind, PciDevice
from sublet.errors import GuestError
from sublet.hw import Clock, Executor, GuestMemory
from sublet.net import HEADER_SIZE, MAX_PACKET_SIZE, MIN_PACKET_SIZE, Offload, PacketSink
from sublet.net.offload import complete

VENDOR_ID: Final = 0x8086
DEVICE_ID: Final = 0x100E
PCI_CLASS: Final = 0x020000
OPTION_ROM: Final = "efi-e1000.rom"
"""File of Debian's package ``ipxe-qemu`` with which firmware boots from this card."""
MMIO_SIZE: Final = 0x20000
IO_SIZE: Final = 64
_BATCH: Final = 32
_ROUNDS: Final = 16
"""Batches sent before other devices on the same worker get their turn."""


class E1000(PciDevice):
    """One card. Packets are dropped, and counted, while the link is down or receiving is off.

    Locks: ``_transmitting`` guards the transmit ring and what is not yet sent, ``_receiving`` the receive
    ring. The sink's ``send`` is called with the first held and may deliver, which takes the second;
    nobody takes them the other way round. Plain registers are single words, read and written atomically.

    Bad input, by design: registers that are not there read as zero and ignore writes; accesses of other
    sizes than four bytes likewise; an index past its ring's end stops that ring, and so does a ring
    outside RAM; what a single descriptor can get wrong, ``transmit`` says.

    Args:
        sink: Takes the guest's packets and delivers the others'; closed by ``close``.
        memory: Guest RAM.
        executor: Where frames are sent.
        clock: For interrupt throttling.
        mac: Six bytes, a unicast address; it is in the EEPROM.
    """

    def __init__(
        self, sink: PacketSink, memory: GuestMemory, executor: Executor, clock: Clock, *, mac: bytes
    ) -> None:
        super().__init__(
            vendor_id=VENDOR_ID,
            device_id=DEVICE_ID,
            class_code=PCI_CLASS,
            revision=3,
            subsystem_vendor_id=VENDOR_ID,
            subsystem_id=0x001E,
            interrupt_pin=1,
        )
        self.mac = mac
        self.counters: Counter[str] = Counter()
        self._memory = memory
        self._executor = executor
        self._sink = sink
        self._cable = self._carrier = True
        self._eeprom = Eeprom(make_content(mac, DEVICE_ID, VENDOR_ID))
        self._phy = Phy()
        self._interrupts = Interrupts(self.set_intx, clock)
        self._assembler = tx.Assembler(memory)
        self._transmitting = threading.Lock()
        self._receiving = threading.Lock()
        self._unsent: Sequence[bytes] = ()
        self._unfinished: list[bytes] = []
        self._scheduled = False
        self._io_address = 0
        self._registers: dict[int, int] = {}
        self._reset_registers()
        self.add_bar(Bar(0, BarKind.MEMORY32, MMIO_SIZE, self))
        self.add_bar(Bar(1, BarKind.IO, IO_SIZE, self))
        sink.attach(self)
        sink.set_guest_offloads(Offload.NONE)

    def _reset_registers(self) -> None:
        self._registers = dict.fromkeys(r.WRITABLE, 0) | r.INITIAL
        low, high = int.from_bytes(self.mac[:4], "little"), int.from_bytes(self.mac[4:], "little")
        self._registers[r.RAL], self._registers[r.RAL + 4] = low, high | r.RAH_AV
        self._statistics: Counter[int] = Counter()

    # The cable

    @property
    def link_up(self) -> bool:
        """Whether the cable is in and carries a signal."""
        return self._cable and self._carrier

    def set_link(self, up: bool) -> None:
        """Plug or pull the cable at the card."""
        self._cable = up
        self._link_changed()

    def set_carrier(self, up: bool) -> None:
        """The sink's end of the cable (``PacketReceiver``)."""
        self._carrier = up
        self._link_changed()

    def _link_changed(self) -> None:
        if self._phy.link_up != self.link_up:
            self._phy.link_up = self.link_up
            self._interrupts.raise_causes(r.INT_LSC)

    # BARs

    def mmio_read(self, offset: int, size: int) -> int:
        """A register."""
        return self._read(offset) if size == 4 and offset % 4 == 0 else 0

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """A register."""
        if size == 4 and offset % 4 == 0:
            self._write(offset, value & 0xFFFF_FFFF)

    def pio_read(self, offset: int, size: int) -> int:
        """IOADDR, or the register that it names (§13.2.2 "I/O-Mapped Internal Register Access")."""
        if size != 4:
            return 0
        return self._io_address if offset == 0 else self._read(self._io_address) if offset == 4 else 0

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """IOADDR, or the register that it names."""
        if size == 4 and offset == 0:
            self._io_address = value & (MMIO_SIZE - 4)
        elif size == 4 and offset == 4:
            self._write(self._io_address, value & 0xFFFF_FFFF)

    def _read(self, offset: int) -> int:
        if offset == r.ICR:
            return self._interrupts.read_and_clear()
        if offset == r.STATUS:
            return r.STATUS_FD | r.STATUS_SPEED_1000 | (r.STATUS_LU if self.link_up else 0)
        if offset in (r.IMS, r.ICS):
            return self._interrupts.mask if offset == r.IMS else 0
        if offset == r.EECD:
            return self._eeprom.read_control()
        if offset == r.EERD:
            return self._eeprom.read_register()
        if offset == r.MDIC:
            return self._phy.mdic
        if r.STATISTICS <= offset < r.STATISTICS_END:
            return min(self._statistics.pop(offset, 0), 0xFFFF_FFFF)
        return self._registers.get(offset, 0)

    def _write(self, offset: int, value: int) -> None:
        if offset in r.WRITABLE:
            self._registers[offset] = value & r.WRITABLE[offset]
            self._act(offset, value)
        elif offset == r.ICR:
            self._interrupts.clear(value)
        elif offset == r.ICS:
            self._interrupts.raise_causes(value)
        elif offset == r.IMS:
            self._interrupts.allow(value)
        elif offset == r.IMC:
            self._interrupts.forbid(value)
        elif offset == r.EECD:
            self._eeprom.write_control(value)
        elif offset == r.EERD:
            self._eeprom.write_register(value)
        elif offset == r.MDIC:
            self._write_mdic(value)

    def _act(self, offset: int, value: int) -> None:
        """What writing a plain register sets off."""
        if offset == r.CTRL and value & r.CTRL_RST:
            self._reset_card()
        elif offset == r.CTRL and value & r.CTRL_PHY_RST:
            self._phy.reset()
        elif offset == r.ITR:
            self._interrupts.set_interval(value)
        elif offset in (r.TDT, r.TCTL):
            self._schedule()
        elif offset in (r.RDT, r.RCTL):
            self._refill()

    def _write_mdic(self, value: int) -> None:
        interrupt, restarted = self._phy.write_mdic(value)
        causes = (r.INT_MDAC if interrupt else 0) | (r.INT_LSC if restarted else 0)
        if causes:
            self._interrupts.raise_causes(causes)

    def _ring(self, base: int, length: int) -> tuple[int, int]:
        """A ring's address, and how many descriptors it has."""
        address = self._registers[base] | self._registers[base + 4] << 32
        return address, self._registers[length] // tx.DESCRIPTOR_SIZE

    # Frames from the guest

    def send_ready(self) -> None:
        """The sink has room again (``PacketReceiver``)."""
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._executor.submit(self._transmit)

    def _transmit(self) -> None:
        self._scheduled = False
        with self._transmitting:
            for _ in range(_ROUNDS):
                if not self._flush():
                    return
                try:
                    packets, count = self._take_frames()
                except GuestError:
                    return  # the ring is outside RAM: a bus error, at which the card stops
                if not count:
                    return
                self._unsent = packets
        self._schedule()

    def _flush(self) -> bool:
        """Send what was taken from the ring; whether all of it could be."""
        if self._unsent:
            taken = self._sink.send(self._unsent)
            self.counters["sent.packets"] += taken
            self.counters["sent.bytes"] += sum(map(len, self._unsent[:taken])) - HEADER_SIZE * taken
            self._unsent = self._unsent[taken:]
        return not self._unsent

    def _take_frames(self) -> tuple[list[bytes], int]:
        """(packets, descriptors) of the next descriptors in the ring, reported to the driver."""
        address, size = self._ring(r.TDBAL, r.TDLEN)
        head, tail = self._registers[r.TDH], self._registers[r.TDT]
        running = self._registers[r.TCTL] & r.TCTL_EN and self.bus_master
        if not running or head >= size or tail >= size or head == tail:
            return [], 0
        packets: list[bytes] = []
        causes = count = 0
        while head != tail and count < _BATCH:
            where = address + tx.DESCRIPTOR_SIZE * head
            packet, report = self._assembler.add(
                self._memory.read(where, tx.DESCRIPTOR_SIZE), self._registers[r.VET]
            )
            if packet is not None:
                packets += self._prepare(packet)
            if report:
                status = self._memory.read(where + 12, 1)[0] | tx.STATUS_DD
                self._memory.write(where + 12, bytes((status,)))
                causes |= r.INT_TXDW
            head = (head + 1) % size
            count += 1
        self._registers[r.TDH] = head
        self._interrupts.raise_causes(causes | (r.INT_TXQE if head == tail else 0))
        return packets, count

    def _prepare(self, packet: bytes) -> list[bytes]:
        if not self.link_up:
            self.counters["dropped.link_down"] += 1
            return []
        if len(packet) > MAX_PACKET_SIZE:
            self.counters["dropped.size"] += 1
            return []
        packets = complete(packet, self._sink.offloads)
        self._count(r.GPTC, r.TPT, r.GOTCL, packets)
        return packets

    # Frames for the guest

    def receive(self, packets: Sequence[bytes]) -> int:
        """Put frames into the driver's buffers (``PacketReceiver``)."""
        if not self.link_up or not self._registers[r.RCTL] & r.RCTL_EN:
            reason = "no_driver" if self.link_up else "link_down"
            self.counters[f"dropped.{reason}"] += len(packets)
            return len(packets)
        with self._receiving:
            return self._fill(packets)

    def _fill(self, packets: Sequence[bytes]) -> int:
        done = causes = 0
        try:
            while True:
                while self._unfinished and (stored := self._store(self._unfinished[0])):
                    causes |= stored
                    self._unfinished.pop(0)
                if self._unfinished or done == len(packets):
                    break
                self._unfinished += self._accept(packets[done])
                done += 1
        except GuestError:
            # The ring or a buffer is outside RAM: a bus error; the frame is lost.
            self._unfinished.clear()
            self.counters["dropped.bus_error"] += 1
            done = len(packets)
        if causes:
            self._interrupts.raise_causes(causes)
        return done

    def _accept(self, packet: bytes) -> list[bytes]:
        """The frames of a packet that the filters let pass."""
        if not MIN_PACKET_SIZE <= len(packet) <= MAX_PACKET_SIZE:
            self.counters["dropped.size"] += 1
            return []
        made = complete(packet, Offload.NONE)
        frames = [each[HEADER_SIZE:] for each in made if rx.wants(each[HEADER_SIZE:], self._registers)]
        self.counters["dropped.filtered"] += len(made) - len(frames)
        return frames

    def _store(self, frame: bytes) -> int:
        """Lay a frame into as many buffers as it needs; the interrupt's causes, or 0 to try again later."""
        registers = self._registers
        address, size = self._ring(r.RDBAL, r.RDLEN)
        head, tail = registers[r.RDH], registers[r.RDT]
        if head >= size or tail >= size or not self.bus_master:
            return 0
        data, status, tag = rx.prepare(frame, registers)
        length = rx.buffer_size(registers[r.RCTL])
        pieces = [data[start : start + length] for start in range(0, len(data), length)]
        if len(pieces) >= size:
            self.counters["dropped.size"] += 1
            return r.INT_RXO
        room = (tail - head) % size
        if room < len(pieces):
            return 0
        for index, piece in enumerate(pieces):
            where = address + rx.DESCRIPTOR_SIZE * ((head + index) % size)
            last = index == len(pieces) - 1
            self._memory.write(self._memory.read_u64(where), piece)
            bits = rx.STATUS_DD | (rx.STATUS_EOP | rx.STATUS_IXSM | status if last else 0)
            self._memory.write(where + 8, rx.pack_completion(len(piece), bits, tag if last else 0))
        registers[r.RDH] = (head + len(pieces)) % size
        self.counters["received.packets"] += 1
        self.counters["received.bytes"] += len(frame)
        self._count(r.GPRC, r.TPR, r.GORCL, [bytes(HEADER_SIZE) + frame])
        threshold = size >> 1 + (registers[r.RCTL] >> 8 & 3)
        return r.INT_RXT0 | (r.INT_RXDMT0 if room - len(pieces) <= threshold else 0)

    def _count(self, good: int, total: int, octets: int, packets: Sequence[bytes]) -> None:
        self._statistics[good] += len(packets)
        self._statistics[total] += len(packets)
        self._statistics[octets] += sum(map(len, packets)) - HEADER_SIZE * len(packets)

    def _refill(self) -> None:
        """The driver gave buffers, or turned receiving on."""
        self._executor.submit(self._resume_receiving)

    def _resume_receiving(self) -> None:
        with self._receiving:
            if self._registers[r.RCTL] & r.RCTL_EN:
                self._fill(())
        self._sink.receive_ready()

    # Lifecycle

    def _reset_card(self) -> None:
        """CTRL.RST: everything but the PCI configuration and the EEPROM."""
        with self._transmitting, self._receiving:
            self._unsent = ()
            self._unfinished.clear()
            self._assembler.reset()
            self._reset_registers()
        self._eeprom.reset()
        self._phy.reset()
        self._interrupts.reset()
        self._sink.receive_ready()

    def reset(self) -> None:
        """Power-on state."""
        self._reset_card()
        self._io_address = 0
        super().reset()

    def statistics(self) -> dict[str, int]:
        """Packets and bytes of both directions, what was dropped and why, and the sink's counters."""
        return {**self.counters, **self._sink.statistics()}

    def save_state(self) -> dict[str, Any]:
        """Everything the guest could observe; frames on the wire may be lost."""
        with self._transmitting, self._receiving:
            return {
                "pci": super().save_state(),
                "registers": dict(self._registers),
                "statistics": dict(self._statistics),
                "io_address": self._io_address,
                "cable": self._cable,
                "eeprom": self._eeprom.save_state(),
                "phy": self._phy.save_state(),
                "interrupts": self._interrupts.save_state(),
                "assembler": self._assembler.save_state(),
            }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self._reset_card()
        super().load_state(state["pci"])
        self._registers.update(state["registers"])
        self._statistics.update(state["statistics"])
        self._io_address = state["io_address"]
        self._cable = state["cable"]
        self._phy.link_up = self.link_up
        self._eeprom.load_state(state["eeprom"])
        self._phy.load_state(state["phy"])
        self._assembler.load_state(state["assembler"])
        self._interrupts.load_state(state["interrupts"])
        self._schedule()
        self._refill()

    def close(self) -> None:
        """Stop and close the sink. Idempotent."""
        self._sink.close()
        self._interrupts.close()
