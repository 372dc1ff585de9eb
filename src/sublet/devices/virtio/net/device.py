"""The network device: packets between a driver and a packet sink.

Packets for the guest go straight from the sink's thread into the driver's buffers, those of the guest
straight to the sink: the device keeps none, except the segments of one packet that it had to cut.

Reference: virtio 1.2 §5.1.6 "Device Operation".
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, Final

from sublet.devices.virtio.device import F_VERSION_1, ROUNDS, VirtioDevice
from sublet.devices.virtio.net import config as c
from sublet.devices.virtio.net import control
from sublet.devices.virtio.net.buffers import ReceiveBuffers
from sublet.devices.virtio.net.filter import ReceiveFilter
from sublet.devices.virtio.net.steering import Steering
from sublet.devices.virtio.queue import (
    DescriptorChain,
    Virtqueue,
    read_segments,
    split_segments,
    write_segments,
)
from sublet.errors import GuestError
from sublet.hw import Executor
from sublet.net import HEADER_SIZE, MAX_PACKET_SIZE, MIN_PACKET_SIZE, Offload, PacketSink
from sublet.net.offload import complete

QUEUE_SIZE: Final = 256
MAX_PAIRS: Final = 8
TRANSMIT_BATCH: Final = 32
"""Chains handed to the sink at once: up to 2 MiB."""
INLINE_CHAINS: Final = 2
INLINE_BYTES: Final = 4096
"""What is sent on the vCPU's own thread, which is sooner done than waking another."""
_BUFFERS: Final = slice(HEADER_SIZE - 2, HEADER_SIZE)
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
        self._unfinished: list[deque[bytes]] = [deque() for _ in range(pairs)]
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
        super().activate(queues, features)

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
            queue = self._queues[index]
            if queue is None:
                self.counters["dropped.no_driver"] += len(packets)
                return len(packets)
            try:
                return self._fill(index, queue, packets)
            except GuestError as error:
                self._queues[index] = None
                self.transport.needs_reset(str(error))
                return len(packets)

    def _fill(self, index: int, queue: Virtqueue, packets: Sequence[bytes]) -> int:
        """Give the driver what it has room for, in order, and one interrupt; returns the packets done."""
        used: list[tuple[int, int]] = []
        buffers = ReceiveBuffers(queue, self._header_size)
        try:
            done = self._lay_out(queue, buffers, packets, self._unfinished[index // 2], used)
        finally:
            buffers.close()
        if used:
            queue.push_batch(used)
            if queue.needs_interrupt():
                self.transport.queue_interrupt(index)
        return done

    def _lay_out(
        self,
        queue: Virtqueue,
        buffers: ReceiveBuffers,
        packets: Sequence[bytes],
        unfinished: deque[bytes],
        used: list[tuple[int, int]],
    ) -> int:
        done = 0
        while True:
            while unfinished and self._put(queue, buffers, unfinished[0], used):
                unfinished.popleft()
            if unfinished or done == len(packets):
                return done
            packet = packets[done]
            done += 1
            if not self._wanted(packet):
                continue
            if packet[0] | packet[1]:
                unfinished.extend(complete(packet, self._guest_offloads))
            elif not self._put(queue, buffers, packet, used):
                return done - 1

    def _wanted(self, packet: bytes) -> bool:
        if not MIN_PACKET_SIZE <= len(packet) <= MAX_PACKET_SIZE:
            self.counters["dropped.size"] += 1
            return False
        if packet[_DESTINATION] == self.mac and self.filter.wants_own:
            return True
        if not self.filter.wants(packet[HEADER_SIZE : HEADER_SIZE + 18], self.mac):
            self.counters["dropped.filtered"] += 1
            return False
        return True

    def _put(
        self, queue: Virtqueue, buffers: ReceiveBuffers, packet: bytes, used: list[tuple[int, int]]
    ) -> bool:
        """Write a packet into one buffer, or several where they may be merged; False when they lack."""
        if self._header_size != HEADER_SIZE:
            packet = packet[: self._header_size] + packet[HEADER_SIZE:]
        rest = len(packet)
        chains = self._take_buffers(buffers, rest)
        if not chains:
            return chains is not None
        segments = chains[0].writable
        if len(chains) > 1:
            segments = [segment for chain in chains for segment in chain.writable]
        write_segments(queue.memory, segments, packet)
        if self._header_size == HEADER_SIZE and packet[_BUFFERS] != len(chains).to_bytes(2, "little"):
            _write_buffer_count(queue, segments, len(chains))
        self.counters["received.packets"] += 1
        self.counters["received.bytes"] += rest - self._header_size
        for chain in chains:
            written = min(chain.writable_size, rest)
            used.append((chain.head, written))
            rest -= written
        return True

    def _take_buffers(self, buffers: ReceiveBuffers, size: int) -> list[DescriptorChain] | None:
        """Chains with room for ``size`` bytes; None until the driver has added more; none to drop it."""
        chains: list[DescriptorChain] = []
        room = 0
        while room < size:
            chain = buffers.take()
            if chain is None:
                buffers.put_back(chains)
                return None
            chains.append(chain)
            room += chain.writable_size
            if room < size and not self.features & c.F_MRG_RXBUF:
                buffers.put_back(chains)
                return self._refuse_small_buffer(room, size)
        return chains

    def _refuse_small_buffer(self, room: int, size: int) -> list[DescriptorChain]:
        """A packet larger than the buffers that a driver must supply is lost; otherwise it is at fault."""
        if room < c.FULL_BUFFER_SIZE and size <= c.FULL_BUFFER_SIZE:
            raise GuestError(f"receive buffer of {room} bytes for a packet of {size}")
        self.counters["dropped.size"] += 1
        return []

    # Packets from the guest

    def send_ready(self) -> None:
        """The sink has room again (``PacketReceiver``)."""
        for pair in range(self._pairs):
            self.schedule(2 * pair + 1)

    def notify(self, index: int) -> None:
        """A few short packets are sent at once, as a question or its answer is; the rest by the worker."""
        if index % 2 == 0 or index == self._control_index or not self._transmit_inline(index):
            super().notify(index)

    def _transmit_inline(self, index: int) -> bool:
        """Send what is available if it is little; whether nothing is left to do. vCPU thread."""
        if index >= len(self._queues) or self._scheduled[index]:
            return False
        if not self._locks[index].acquire(blocking=False):
            return False
        try:
            queue = self._queues[index]
            return queue is not None and self._transmit_little(index, queue)
        except GuestError:
            return False  # the worker meets it again, and knows what to do about it
        finally:
            self._locks[index].release()

    def _transmit_little(self, index: int, queue: Virtqueue) -> bool:
        chains = queue.pop_batch(INLINE_CHAINS + 1)
        little = len(chains) <= INLINE_CHAINS and sum(c.readable_size for c in chains) <= INLINE_BYTES
        if not chains or not little:
            queue.undo_pop(len(chains))
            return False
        done = self._return_sent(index, queue, chains)
        return done and not queue.enable_notifications()

    def process(self, index: int, queue: Virtqueue) -> None:
        """Transmit, carry out commands, or say that there are receive buffers again."""
        if index == self._control_index:
            super().process(index, queue)
        elif index % 2:
            self._transmit(index, queue)
        else:
            self._refill(index, queue)

    @property
    def _control_index(self) -> int:
        """§5.1.2: it follows the pairs that are possible, or the first when there are no others."""
        return 2 * self._pairs if self.features & c.F_MQ else 2

    def _refill(self, index: int, queue: Virtqueue) -> None:
        if index // 2 < self._pairs:
            self._fill(index, queue, ())
            self._sink.receive_ready()

    def _transmit(self, index: int, queue: Virtqueue) -> None:
        for _ in range(ROUNDS):
            chains = queue.pop_batch(TRANSMIT_BATCH)
            if not chains:
                if not queue.enable_notifications():
                    return
                continue
            queue.disable_notifications()
            if not self._return_sent(index, queue, chains):
                return
        self.schedule(index)

    def _return_sent(self, index: int, queue: Virtqueue, chains: list[DescriptorChain]) -> bool:
        """Send chains and give them back; those that the sink has no room for stay. Whether it had."""
        done = self._send(index, queue, chains)
        if done:
            queue.push_batch([(chain.head, 0) for chain in chains[:done]])
            if queue.needs_interrupt():
                self.transport.queue_interrupt(index)
        if done < len(chains):
            queue.undo_pop(len(chains) - done)
        return done == len(chains)

    def _send(self, index: int, queue: Virtqueue, chains: list[DescriptorChain]) -> int:
        """Hand chains to the sink; returns how many it is done with, counted from the first."""
        packets: list[bytes] = []
        ends: list[int] = []
        for chain in chains:
            packets += self._gather(queue, chain)
            ends.append(len(packets))
        if self._active_pairs > 1:
            self._steering.learn(packets, index // 2)
        with self._sending:
            taken = self._sink.send(packets) if packets else 0
        self.counters["sent.packets"] += taken
        self.counters["sent.bytes"] += sum(map(len, packets[:taken])) - HEADER_SIZE * taken
        # A packet that was cut and taken in part is done: its rest is lost, not sent twice.
        return next(
            (i + (taken > (ends[i - 1] if i else 0)) for i, end in enumerate(ends) if end > taken), len(ends)
        )

    def _gather(self, queue: Virtqueue, chain: DescriptorChain) -> list[bytes]:
        """The packets of one chain: none, one, or those that the sink does not cut itself."""
        size = chain.readable_size + HEADER_SIZE - self._header_size
        if not MIN_PACKET_SIZE <= size <= MAX_PACKET_SIZE:
            self.counters["dropped.size"] += 1
            return []
        if not self.link_up:
            self.counters["dropped.link_down"] += 1
            return []
        packet = read_segments(queue.memory, chain.readable)
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


def _chains_done(ends: list[int], taken: int) -> int:
    """How many chains are done when ``taken`` packets are; ``ends`` counts packets up to each chain's end.

    A chain whose packet was cut, and taken in part, is done: its rest is lost rather than sent twice.
    """
    before = 0
    for index, end in enumerate(ends):
        if end > taken:
            return index + (taken > before)
        before = end
    return len(ends)


def _write_buffer_count(queue: Virtqueue, segments: list[tuple[int, int]], count: int) -> None:
    """num_buffers, the last field of the header; the driver may have cut the header anywhere."""
    data = count.to_bytes(2, "little")
    if segments[0][1] >= HEADER_SIZE:
        queue.memory.write(segments[0][0] + HEADER_SIZE - 2, data)
    else:
        write_segments(queue.memory, split_segments(segments, HEADER_SIZE - 2)[1], data)
