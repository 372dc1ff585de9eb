"""A sink on a descriptor, served by one thread that sleeps unless there is something to do."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

from sublet.errors import SubletError
from sublet.net.packet import Offload
from sublet.net.sink import PacketReceiver

RECEIVE_BATCH: Final = 64
"""Packets read at once: what is held for a guest that has no room."""
_READ, _WRITE = select.POLLIN, select.POLLOUT
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 30.0
_LOG: Final = logging.getLogger("sublet.net")


class PolledSink:
    """Base of the sinks on sockets and TAP devices. A subclass reads and writes without blocking.

    The thread reads as long as the guest takes what it read; then the peer's own queue fills, and what
    does not fit there is the peer's to drop. It looks whether the descriptor takes packets only after
    one was not taken.

    Args:
        descriptor: Non-blocking; the subclass closes it in ``release``.
        offloads: What the peer takes undone.
    """

    def __init__(self, descriptor: int, offloads: Offload = Offload.NONE) -> None:
        self.counters: Counter[str] = Counter()
        self._descriptor = descriptor
        self._offloads = offloads
        self._receiver: PacketReceiver | None = None
        self._thread: threading.Thread | None = None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._connected = True
        self._closed = False
        self._send_blocked = False
        self._read_anyway = False
        self._pending: Sequence[bytes] = ()

    # What a subclass says

    def read_packets(self) -> list[bytes]:
        """Up to ``RECEIVE_BATCH`` packets that are there now; none where there are none.

        Raises:
            ConnectionError: The peer has gone, or broke the protocol.
        """
        raise NotImplementedError

    def write_packets(self, packets: Sequence[bytes]) -> int:
        """Write without blocking; returns how many were taken, from the first on.

        Raises:
            ConnectionError: The peer has gone.
        """
        raise NotImplementedError

    def flush(self) -> bool:
        """Write what was taken and is not yet written; whether nothing of it is left."""
        return True

    def wake_to_read(self) -> None:
        """Have ``read_packets`` called though the peer has sent nothing."""
        self._read_anyway = True
        self._notify()

    def reopen(self) -> int | None:
        """Reach the peer again, after it has gone.

        Called on the sink's thread, after a pause that doubles from try to try. What ``write_packets``
        uses is changed under ``_writing``.

        Returns:
            The new descriptor; the old one is closed. None when there is nobody to reach, ever.

        Raises:
            SubletError: Not now.
        """
        return None

    def release(self) -> None:
        """Close the descriptor; called once, after the thread has ended."""
        raise NotImplementedError

    # PacketSink

    @property
    def offloads(self) -> Offload:
        """What the peer takes undone."""
        return self._offloads

    @property
    def connected(self) -> bool:
        """Whether packets still go anywhere."""
        return self._connected

    def attach(self, receiver: PacketReceiver) -> None:
        """Start the thread."""
        self._receiver = receiver
        self._thread = threading.Thread(target=self._serve, name="net", daemon=True)
        self._thread.start()

    def set_guest_offloads(self, offloads: Offload) -> None:
        """Ignored unless the peer can be told."""

    def send(self, packets: Sequence[bytes]) -> int:
        """Write what the descriptor takes; without a peer everything is dropped."""
        if not self._connected:
            self.counters["dropped.disconnected"] += len(packets)
            return len(packets)
        try:
            with self._writing:
                taken = self.write_packets(packets)
                blocked = taken < len(packets) or not self.flush()
        except OSError:
            self._disconnect()
            return len(packets)
        if blocked:
            self._send_blocked = True
            self._notify()
        return taken

    def receive_ready(self) -> None:
        """Have the thread offer again what the guest did not take."""
        if self._pending:
            self._notify()

    def statistics(self) -> dict[str, int]:
        """What was dropped here."""
        return dict(self.counters)

    def close(self) -> None:
        """End the thread and release the descriptor."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._connected = False
        self._notify()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self.release()
        os.close(self._wake)

    # The thread

    def _notify(self) -> None:
        with contextlib.suppress(OSError):
            os.eventfd_write(self._wake, 1)

    def _disconnect(self) -> None:
        """The peer has gone: the guest sees the cable pulled."""
        if not self._connected:
            return
        self._connected = False
        self._notify()
        if self._receiver is not None:
            self._receiver.set_carrier(False)

    def _serve(self) -> None:
        while not self._closed:
            with contextlib.suppress(OSError):
                self._serve_peer()
            self._disconnect()
            if not self._reconnect():
                return

    def _serve_peer(self) -> None:
        poll = select.poll()
        poll.register(self._wake, _READ)
        poll.register(self._descriptor, 0)
        while self._connected and not self._closed:
            mask = (0 if self._pending else _READ) | (_WRITE if self._send_blocked else 0)
            poll.modify(self._descriptor, mask)
            self._answer(dict(poll.poll()))

    def _reconnect(self) -> bool:
        """Try until there is a peer again; false when there never will be one, or this sink is closed."""
        pause_s = _FIRST_PAUSE_S
        while not self._pause(pause_s):
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            try:
                descriptor = self.reopen()
            except SubletError as error:
                _LOG.info("not connected again: %s", error.message)
                continue
            if descriptor is None:
                return False
            self._go_on(descriptor)
            return True
        return False

    def _pause(self, seconds: float) -> bool:
        """Wait; whether the sink was closed meanwhile."""
        poll = select.poll()
        poll.register(self._wake, _READ)
        deadline = time.monotonic() + seconds
        while not self._closed and (left := deadline - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                os.eventfd_read(self._wake)
        return self._closed

    def _go_on(self, descriptor: int) -> None:
        """The guest sees the cable plugged in."""
        assert self._receiver is not None, "the thread starts with the receiver"
        self._descriptor = descriptor
        self._send_blocked = False
        self._connected = True
        self.counters["reconnected"] += 1
        self._receiver.set_carrier(True)
        self._receiver.send_ready()

    def _answer(self, events: dict[int, int]) -> None:
        assert self._receiver is not None, "the thread starts with the receiver"
        if self._wake in events:
            os.eventfd_read(self._wake)
        ready = events.get(self._descriptor, 0)
        if ready & _WRITE:
            self._resume_sending(self._receiver)
        if self._pending and ready & ~_WRITE:
            raise ConnectionResetError  # hung up; reading would tell, but there is no room for packets
        if self._pending:
            self._offer(self._pending)
        elif self._read_anyway or ready & ~_WRITE:
            self._read_anyway = False
            self._offer(self.read_packets())

    def _resume_sending(self, receiver: PacketReceiver) -> None:
        with self._writing:
            self._send_blocked = not self.flush()
        if not self._send_blocked:
            receiver.send_ready()

    def _offer(self, packets: Sequence[bytes]) -> None:
        """Give packets to the guest and keep those that it has no room for.

        The first refusal may come just before the guest's word that it has room: it is asked again when
        ``_pending`` says so to ``receive_ready``.
        """
        assert self._receiver is not None, "the thread starts with the receiver"
        taken = self._receiver.receive(packets)
        self._pending = packets[taken:]
        if self._pending:
            taken = self._receiver.receive(self._pending)
            self._pending = self._pending[taken:]
