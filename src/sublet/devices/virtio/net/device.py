"""The network device: packets between a driver and a packet sink.

Packets for the guest go straight from the sink's thread into the driver's buffers, those of the guest
straight to the sink: the device keeps none, except the segments of one packet that it had to cut.

Reference: virtio 1.2 §5.1.6 "Device Operation".
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from sublet.devices.virtio.device import F_VERSION_1, ROUNDS, VirtioDevice
from sublet.devices.virtio.net import config as c
from sublet.devices.virtio.net import control
from sublet.devices.virtio.net.filter import ReceiveFilter
from sublet.devices.virtio.net.steering import Steering
from sublet.devices.virtio.queue import (
    DescriptorChain,
    Virtqueue,
    read_segments,
    write_segments,
)
from sublet.errors import GuestError
from sublet.hw import Executor, PacketQueue
from sublet.net import HEADER_SIZE, MAX_PACKET_SIZE, MIN_PACKET_SIZE, Offload, PacketSink
from sublet.net.offload import complete

QUEUE_SIZE: Final = 256
MAX_PAIRS: Final = 8
TRANSMIT_BATCH: Final = 32
"""Chains handed to the sink at once: up to 2 MiB."""
TRANSMIT_BYTES: Final = 1 << 33
"""As many as they are: longer buffers than packets are not read."""
INLINE_BUFFERS: Final = 4
INLINE_BYTES: Final = 4096
"""What is sent on the vCPU's own thread, which is sooner done than waking another."""
_DESTINATION: Final = slice(HEADER_SIZE, HEADER_SIZE + 6)


class VirtioNet(VirtioDevice):
    """One Ethernet interface. Packets are dropped, and counted, while the link or the driver is down.

    Locks, beside those of ``VirtioDevice``: ``_sending`` makes the sink's ``send`` calls follow each
    other; it is taken with a transmit queue's lock held.

    Args:
        sink: Takes the guest's packets and delivers the others'; closed by ``close``.
        executor: Where queues are served.
        mac: Six bytes, a unicast address.
        mtu: 68 to 65521 bytes of payload.
        pairs: Queue pairs, 1 to ``MAX_PAIRS``.
    """

    device_type = c.DEVICE_TYPE
    pci_class = c.PCI_CLASS

    def __init__(
        self, sink: PacketSink, executor: Executor, *, mac: bytes, mtu: int = 1500, pairs: int = 1
    ) -> None:
        super().__init__(executor, [QUEUE_SIZE] * (2 * pairs + 1))
        if len(mac) != 6 or mac[0] & 1:
            raise ValueError(f"{mac.hex(':')} is not a unicast MAC address")
        self.filter = ReceiveFilter()
        self.counters: Counter[str] = Counter()
        self._permanent_mac = mac
        self._mtu = mtu
        self._pairs = pairs
        self._carrier = True
        self._cable = True
        self._sink = sink
        self._sending = threading.Lock()
        self._steering = Steering()
        self._unfinished: list[list[bytes]] = [[] for _ in range(pairs)]
        self._rings: list[PacketQueue | None] = [None] * (2 * pairs)
        """The queues of packets, where live; guarded as ``_queues``, which says so too."""
        self._forget_driver()
        sink.attach(self)

    def _forget_driver(self) -> None:
        self.mac = self._permanent_mac
        self.filter.reset()
        self._announcing = False
        self._active_pairs = 1
        self._chosen_offloads: Offload | None = None
        self._guest_offloads = Offload.NONE
        self._header_size = HEADER_SIZE

    # Configuration

    @property
    def offered_features(self) -> int:
        """Everything but RSS, hash reports and UFO; towards the host what the sink takes."""
        features = c.F_MAC | c.F_STATUS | c.F_MTU | c.F_MRG_RXBUF | c.F_GUEST_ANNOUNCE
        features |= c.F_CTRL_VQ | c.F_CTRL_RX | c.F_CTRL_RX_EXTRA | c.F_CTRL_VLAN | c.F_CTRL_MAC_ADDR
        features |= c.F_CTRL_GUEST_OFFLOADS | sum(c.GUEST_OFFLOADS) | c.host_features(self._sink.offloads)
        return features | (c.F_MQ if self._pairs > 1 else 0)

    @property
    def link_up(self) -> bool:
        """Whether the cable is in and carries a signal."""
        return self._cable and self._carrier

    @property
    def dropped(self) -> int:
        """Packets of both directions that went nowhere, for any reason."""
        return sum(count for name, count in self.counters.items() if name.partition(".")[0] == "dropped")

    def config(self) -> bytes:
        """``struct virtio_net_config``."""
        status = (c.STATUS_LINK_UP if self.link_up else 0) | (c.STATUS_ANNOUNCE if self._announcing else 0)
        return c.pack_config(self.mac, status, self._pairs, self._mtu)

    def set_link(self, up: bool) -> None:
        """Plug or pull the cable at the card."""
        before = self.link_up
        self._cable = up
        self._link_changed(before)

    def set_carrier(self, up: bool) -> None:
        """The sink's end of the cable."""
        before = self.link_up
        self._carrier = up
        self._link_changed(before)

    def _link_changed(self, before: bool) -> None:
        if self.link_up != before:
            self.transport.config_interrupt()

    def announce(self) -> None:
        """Have the driver tell the network where it is now, after a migration (§5.1.6.5.4)."""
        if self.features & c.F_GUEST_ANNOUNCE:
            self._announcing = True
            self.transport.config_interrupt()

    def activate(self, queues: Sequence[Virtqueue | None], features: int) -> None:
        """DRIVER_OK: offloads and the header's size follow from the features."""
        self._header_size = HEADER_SIZE if features & (F_VERSION_1 | c.F_MRG_RXBUF) else c.LEGACY_HEADER_SIZE
        self.filter.filters_vlans = bool(features & c.F_CTRL_VLAN)
        self._set_offloads(features)
        self._take_over(queues, features)
        super().activate(queues, features)

    def _take_over(self, queues: Sequence[Virtqueue | None], features: int) -> None:
        """Have the core walk the queues of packets; the control queue is not one, whatever its number."""
        control = 2 * self._pairs if features & c.F_MQ else 2
        for index in range(len(self._rings)):
            queue = queues[index] if index < min(len(queues), control) else None
            with self._locks[index]:
                self._rings[index] = None if queue is None else queue.for_packets()

    def queue_states(self) -> list[dict[str, Any] | None]:
        """Positions, of queues of packets as the core has them."""
        states = super().queue_states()
        for index, ring in enumerate(self._rings):
            with self._locks[index]:
                if ring is not None and states[index] is not None:
                    states[index] = ring.save_state()
        return states

    def _set_offloads(self, features: int) -> None:
        negotiated = c.guest_offloads(features)
        chosen = self._chosen_offloads
        self._guest_offloads = negotiated if chosen is None else negotiated & chosen
        self._sink.set_guest_offloads(self._guest_offloads)

    # Packets for the guest

    def receive(self, packets: Sequence[bytes]) -> int:
        """Put packets into the driver's buffers (``PacketReceiver``)."""
        if not self.link_up:
            self.counters["dropped.link_down"] += len(packets)
            return len(packets)
        if self._active_pairs == 1:
            return self._receive_on(0, packets)
        done = 0
        for pair, run in self._steering.runs(packets, self._active_pairs):
            taken = self._receive_on(pair, run)
            done += taken
            if taken < len(run):
                break
        return done

    def _receive_on(self, pair: int, packets: Sequence[bytes]) -> int:
        index = 2 * pair
        with self._locks[index]:
            ring = self._rings[index]
            if ring is None:
                self.counters["dropped.no_driver"] += len(packets)
                return len(packets)
            try:
                return self._fill(index, ring, packets)
            except GuestError as error:
                self._break_queue(index, error)
                return len(packets)

    def _break_queue(self, index: int, error: GuestError) -> None:
        self._queues[index] = self._rings[index] = None
        self.transport.needs_reset(str(error))

    def _fill(self, index: int, ring: PacketQueue, packets: Sequence[bytes]) -> int:
        """Give the driver what it has room for, in order, and one interrupt; returns the packets done."""
        unfinished = self._unfinished[index // 2]
        ready = [*unfinished]
        ends, reasons = self._prepare(packets, ready)
        laid, too_large, size, interrupt = ring.put(
            ready, self._header_size, bool(self.features & c.F_MRG_RXBUF)
        )
        self.counters["received.packets"] += laid - too_large
        self.counters["received.bytes"] += size
        if too_large:
            self.counters["dropped.size"] += too_large
        done = self._count_done(ends, reasons, len(unfinished), laid)
        # Of a packet that was cut, the pieces without room wait here: it has been taken.
        rest = ready[laid : max(laid, ends[done - 1] if done else len(unfinished))]
        unfinished.clear()
        unfinished.extend(rest)
        if interrupt:
            self.transport.queue_interrupt(index)
        return done

    def _prepare(self, packets: Sequence[bytes], ready: list[bytes]) -> tuple[list[int], list[str]]:
        """Append what the guest takes of packets, as far as a queue may have room.

        Returns:
            Of each packet, how many are ready with it, and why it goes nowhere, if it does.
        """
        ends: list[int] = []
        reasons: list[str] = []
        for packet in packets:
            if len(ready) > QUEUE_SIZE:
                break
            reason = self._refusal(packet)
            if not reason:
                if packet[0] | packet[1]:
                    ready += complete(packet, self._guest_offloads)
                else:
                    ready.append(packet)
            ends.append(len(ready))
            reasons.append(reason)
        return ends, reasons

    def _count_done(self, ends: list[int], reasons: list[str], first: int, laid: int) -> int:
        """How many packets are done with once ``laid`` of what was ready have been; counts the refused."""
        start = first
        for number, (end, reason) in enumerate(zip(ends, reasons, strict=True)):
            if start > laid or (start == laid and end > start):
                return number
            if reason:
                self.counters[reason] += 1
            start = end
        return len(ends)

    def _refusal(self, packet: bytes) -> str:
        """The counter of those that the card does not take, as this one; empty for one that it takes."""
        if not MIN_PACKET_SIZE <= len(packet) <= MAX_PACKET_SIZE:
            return "dropped.size"
        if packet[_DESTINATION] == self.mac and self.filter.wants_own:
            return ""
        wanted = self.filter.wants(packet[HEADER_SIZE : HEADER_SIZE + 18], self.mac)
        return "" if wanted else "dropped.filtered"

    # Packets from the guest

    def send_ready(self) -> None:
        """The sink has room again (``PacketReceiver``)."""
        for pair in range(self._pairs):
            self.schedule(2 * pair + 1)

    def notify(self, index: int) -> None:
        """A few packets are sent at once, as a question or its answer is; the rest by the worker."""
        if index % 2 == 0 or index == self._control_index or not self._transmit_inline(index):
            super().notify(index)

    def _transmit_inline(self, index: int) -> bool:
        """Send what is available if it is little; whether nothing is left to do. vCPU thread."""
        if index >= len(self._rings) or self._scheduled[index]:
            return False
        if not self._locks[index].acquire(blocking=False):
            return False
        try:
            ring = self._rings[index]
            return ring is not None and self._transmit_few(index, ring)
        except GuestError:
            return False  # the worker meets it again, and knows what to do about it
        finally:
            self._locks[index].release()

    def _transmit_few(self, index: int, ring: PacketQueue) -> bool:
        buffers = self._take(ring, INLINE_BUFFERS, INLINE_BYTES)
        if not buffers or not self._return_sent(index, ring, buffers):
            return False
        return not ring.enable_notifications()

    def process(self, index: int, queue: Virtqueue) -> None:
        """Transmit, carry out commands, or say that there are receive buffers again."""
        ring = self._rings[index] if index < len(self._rings) else None
        if index == self._control_index:
            super().process(index, queue)
        elif ring is None:
            return
        elif index % 2:
            self._transmit(index, ring)
        else:
            self._fill(index, ring, ())
            self._sink.receive_ready()

    @property
    def _control_index(self) -> int:
        """§5.1.2: it follows the pairs that are possible, or the first when there are no others."""
        return 2 * self._pairs if self.features & c.F_MQ else 2

    def _take(self, ring: PacketQueue, limit: int, budget: int) -> list[bytes | None]:
        missing = HEADER_SIZE - self._header_size
        return ring.take(limit, budget, MIN_PACKET_SIZE - missing, MAX_PACKET_SIZE - missing)

    def _transmit(self, index: int, ring: PacketQueue) -> None:
        for _ in range(ROUNDS):
            buffers = self._take(ring, TRANSMIT_BATCH, TRANSMIT_BYTES)
            if not buffers:
                if not ring.enable_notifications():
                    return
                continue
            ring.disable_notifications()
            if not self._return_sent(index, ring, buffers):
                return
        self.schedule(index)

    def _return_sent(self, index: int, ring: PacketQueue, buffers: Sequence[bytes | None]) -> bool:
        """Send buffers and give them back; those that the sink has no room for stay. Whether it had."""
        done = self._send(index, buffers)
        if ring.give_back(done):
            self.transport.queue_interrupt(index)
        return done == len(buffers)

    def _send(self, index: int, buffers: Sequence[bytes | None]) -> int:
        """Hand buffers to the sink; returns how many it is done with, counted from the first."""
        packets: list[bytes] = []
        ends: list[int] = []
        for buffer in buffers:
            packets += self._packets(buffer)
            ends.append(len(packets))
        if self._active_pairs > 1:
            self._steering.learn(packets, index // 2)
        with self._sending:
            taken = self._sink.send(packets) if packets else 0
        self.counters["sent.packets"] += taken
        self.counters["sent.bytes"] += sum(map(len, packets[:taken])) - HEADER_SIZE * taken
        return _buffers_done(ends, taken)

    def _packets(self, buffer: bytes | None) -> list[bytes]:
        """The packets of one buffer: none, one, or those that the sink does not cut itself."""
        if buffer is None:
            self.counters["dropped.size"] += 1
            return []
        if not self.link_up:
            self.counters["dropped.link_down"] += 1
            return []
        packet = buffer
        if self._header_size != HEADER_SIZE:
            packet = packet[: self._header_size] + b"\0\0" + packet[self._header_size :]
        if not packet[0] | packet[1]:
            return [packet]
        packets = complete(packet, self._sink.offloads)
        if not packets:
            self.counters["dropped.bad_header"] += 1
        return packets

    # Commands

    def handle(self, index: int, queue: Virtqueue, chain: DescriptorChain) -> int:
        """Carry out one command of the control queue."""
        if not chain.writable:
            raise GuestError("a control command without room for its answer")
        if chain.readable_size > control.MAX_COMMAND_SIZE:
            return write_segments(queue.memory, chain.writable, c.CTRL_ERROR)
        answer = control.execute(self, read_segments(queue.memory, chain.readable))
        return write_segments(queue.memory, chain.writable, answer)

    def set_address(self, mac: bytes) -> bool:
        """VIRTIO_NET_CTRL_MAC_ADDR_SET; a multicast address is refused."""
        if mac[0] & 1:
            return False
        self.mac = mac
        return True

    def set_pairs(self, count: int) -> bool:
        """VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET."""
        if not 1 <= count <= self._pairs or not self.features & c.F_MQ:
            return False
        self._active_pairs = count
        return True

    def choose_offloads(self, features: int) -> bool:
        """VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET: some of those negotiated."""
        if features & ~(self.features & sum(c.GUEST_OFFLOADS)):
            return False
        self._chosen_offloads = c.guest_offloads(features)
        self._set_offloads(self.features)
        return True

    def acknowledge_announcement(self) -> bool:
        """VIRTIO_NET_CTRL_ANNOUNCE_ACK."""
        acknowledged, self._announcing = self._announcing, False
        return acknowledged

    # Lifecycle

    def reset(self) -> None:
        """Also forgets segments that wait, the filter and the address that the driver set."""
        super().reset()
        for index in range(len(self._rings)):
            with self._locks[index]:
                self._rings[index] = None
        self._forget_driver()
        self._sink.set_guest_offloads(Offload.NONE)
        for index, unfinished in enumerate(self._unfinished):
            with self._locks[2 * index]:
                unfinished.clear()

    def statistics(self) -> dict[str, int]:
        """Packets and bytes of both directions, what was dropped and why, and the sink's counters."""
        return {**self.counters, **self._sink.statistics()}

    def save_state(self) -> dict[str, Any]:
        """What the driver set, and the link; packets on the wire may be lost."""
        return {
            "mac": self.mac,
            "cable": self._cable,
            "announcing": self._announcing,
            "active_pairs": self._active_pairs,
            "offloads": None if self._chosen_offloads is None else int(self._chosen_offloads),
            "filter": self.filter.save_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``; before ``activate``."""
        self.mac = state["mac"]
        self._cable = state["cable"]
        self._announcing = state["announcing"]
        self._active_pairs = state["active_pairs"]
        self._chosen_offloads = None if state["offloads"] is None else Offload(state["offloads"])
        self.filter.load_state(state["filter"])

    def close(self) -> None:
        """Stop and close the sink."""
        self.reset()
        self._sink.close()


def _buffers_done(ends: list[int], taken: int) -> int:
    """How many buffers are done when ``taken`` packets are; ``ends`` counts packets up to each one's end.

    A buffer whose packet was cut, and taken in part, is done: its rest is lost rather than sent twice.
    """
    before = 0
    for index, end in enumerate(ends):
        if end > taken:
            return index + (taken > before)
        before = end
    return len(ends)
