"""An NBD server for one image: several connections, several requests of each at a time.

Clients are hostile: sizes are bounded before anything is allocated, ranges are checked by the image, and a
client that breaks the protocol is disconnected.

Reference: "The NBD protocol" § "Transmission phase".
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from sublet.block.contract import BlockStatus
from sublet.block.format import Image
from sublet.block.nbd import protocol as n
from sublet.block.nbd.negotiation import Session, negotiate
from sublet.block.nbd.stream import Disconnected, Stream
from sublet.errors import SubletError

_LOG = logging.getLogger(__name__)
_CONNECTIONS_MAXIMUM: Final = 16
_WORKERS: Final = 4
"""Requests of one connection that are carried out at a time."""
_QUEUED_MAXIMUM: Final = 16
"""Requests of one connection that are accepted before one is answered."""


class NbdServer:
    """Serves ``image`` on a listening socket until ``stop``. The image stays open.

    Args:
        listener: Bound and listening; closed by ``stop``.
        export: Name of the export; clients may also give none.
    """

    def __init__(self, image: Image, listener: socket.socket, *, export: str = "") -> None:
        self._image = image
        self._listener = listener
        self._export = export
        self._streams: set[Stream] = set()
        self._threads: list[threading.Thread] = []
        # A signal handler may call stop() while its own thread holds the lock.
        self._lock = threading.RLock()
        self._stopping = False
        self.served = 0
        """Connections so far."""

    def serve(self, *, once: bool = False) -> None:
        """Accept clients until ``stop`` is called; with ``once`` until the first has gone."""
        while not self._stopping:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                break
            self._admit(connection)
            if once:
                break
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """Disconnect everybody and make ``serve`` return."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for stream in self._streams:
                stream.close()

    def _admit(self, connection: socket.socket) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if len(self._threads) >= _CONNECTIONS_MAXIMUM:
            connection.close()
            return
        self.served += 1
        stream = Stream(connection)
        with self._lock:
            self._streams.add(stream)
        thread = threading.Thread(target=self._talk, args=(stream,), name="nbd", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _talk(self, stream: Stream) -> None:
        try:
            session = negotiate(stream, self._image, self._export)
            if session is not None:
                _Transmission(stream, self._image, session).run()
        except Disconnected:
            pass
        finally:
            stream.close()
            with self._lock:
                self._streams.discard(stream)


class _Transmission:
    """Requests of one connection after the handshake."""

    def __init__(self, stream: Stream, image: Image, session: Session) -> None:
        self._stream = stream
        self._image = image
        self._session = session
        self._room = threading.Semaphore(_QUEUED_MAXIMUM)
        self._reported = False

    def run(self) -> None:
        """Carry out requests until the client leaves."""
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="nbd-request") as pool:
            while True:
                request = n.REQUEST.unpack(self._stream.receive(n.REQUEST.size))
                magic, flags, kind, cookie, offset, size = request
                if magic != n.REQUEST_MAGIC or kind == n.CMD_DISC:
                    return
                if kind in (n.CMD_READ, n.CMD_WRITE) and size > n.PAYLOAD_MAXIMUM:
                    return
                data = self._stream.receive(size) if kind == n.CMD_WRITE else b""
                self._room.acquire()
                pool.submit(self._handle, flags, kind, cookie, offset, size, data)

    def _handle(self, flags: int, kind: int, cookie: int, offset: int, size: int, data: bytes) -> None:
        try:
            error = self._carry_out(flags, kind, cookie, offset, size, data)
            if error is not None:
                self._finish(cookie, error)
        except Disconnected:
            pass
        except (OSError, SubletError) as problem:
            self._report(problem)
            self._finish_quietly(cookie, n.EIO)
        except Exception:
            _LOG.exception("an NBD request failed by a bug of ours")
            self._finish_quietly(cookie, n.EIO)
        finally:
            self._room.release()

    def _report(self, problem: Exception) -> None:
        """Say why the client sees I/O errors: once, since it may repeat the request for ever."""
        if not self._reported:
            self._reported = True
            _LOG.warning("an NBD request failed, the client sees an I/O error: %s", problem)

    def _carry_out(
        self, flags: int, kind: int, cookie: int, offset: int, size: int, data: bytes
    ) -> int | None:
        """Carry out a request; an error number (0: done), or None when the answer is sent already."""
        if kind == n.CMD_FLUSH:
            self._image.flush()
            return 0
        if offset + size > self._image.size:
            return n.ENOSPC if kind in (n.CMD_WRITE, n.CMD_WRITE_ZEROES) else n.EINVAL
        if kind == n.CMD_READ:
            self._read(cookie, offset, size)
            return None
        if kind == n.CMD_BLOCK_STATUS and self._session.allocation and size:
            self._block_status(flags, cookie, offset, size)
            return None
        if kind in (n.CMD_WRITE, n.CMD_TRIM, n.CMD_WRITE_ZEROES):
            return self._change(flags, kind, offset, size, data)
        return n.EINVAL

    def _change(self, flags: int, kind: int, offset: int, size: int, data: bytes) -> int:
        if self._image.readonly:
            return n.EPERM
        if kind == n.CMD_WRITE:
            self._image.write(offset, data)
        elif kind == n.CMD_TRIM:
            self._image.discard(offset, size)
        else:
            self._image.write_zeroes(offset, size, unmap=not flags & n.CMD_FLAG_NO_HOLE)
        if flags & n.CMD_FLAG_FUA:
            self._image.flush()
        return 0

    def _read(self, cookie: int, offset: int, size: int) -> None:
        data = self._image.read(offset, size)
        if not self._session.structured:
            self._stream.send(n.SIMPLE.pack(n.SIMPLE_MAGIC, 0, cookie), data)
        elif not size:
            self._chunk(cookie, n.CHUNK_NONE, b"")
        else:
            head = n.STRUCTURED.pack(n.STRUCTURED_MAGIC, n.CHUNK_DONE, n.CHUNK_OFFSET_DATA, cookie, 8 + size)
            self._stream.send(head + struct.pack(">Q", offset), data)

    def _block_status(self, flags: int, cookie: int, offset: int, size: int) -> None:
        end = offset + size
        parts = [struct.pack(">I", 1)]
        limit = 1 if flags & n.CMD_FLAG_REQ_ONE else n.EXTENTS_MAXIMUM
        while offset < end and len(parts) <= limit:
            extent = self._image.block_status(offset, end - offset)
            zero = extent.status is BlockStatus.ZERO
            parts.append(struct.pack(">II", extent.size, n.STATE_HOLE | n.STATE_ZERO if zero else 0))
            offset += extent.size
        self._chunk(cookie, n.CHUNK_BLOCK_STATUS, b"".join(parts))

    def _chunk(self, cookie: int, kind: int, payload: bytes) -> None:
        head = n.STRUCTURED.pack(n.STRUCTURED_MAGIC, n.CHUNK_DONE, kind, cookie, len(payload))
        self._stream.send(head, payload)

    def _finish(self, cookie: int, error: int) -> None:
        if not self._session.structured:
            self._stream.send(n.SIMPLE.pack(n.SIMPLE_MAGIC, error, cookie))
        elif error:
            self._chunk(cookie, n.CHUNK_ERROR, struct.pack(">IH", error, 0))
        else:
            self._chunk(cookie, n.CHUNK_NONE, b"")

    def _finish_quietly(self, cookie: int, error: int) -> None:
        with contextlib.suppress(Disconnected):
            self._finish(cookie, error)
