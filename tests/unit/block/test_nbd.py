"""The NBD server, spoken to by hand: what it answers, and what it does to those who break the rules."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sublet.block import Image, create_image, open_image
from sublet.block.nbd import NbdServer
from sublet.block.nbd import protocol as n

MIB = 1 << 20


class Client:
    """One connection; answers are read whole."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(str(path))
        assert self.receive(18)[:16] == struct.pack(">QQ", n.NBD_MAGIC, n.OPTION_MAGIC)
        self.socket.sendall(struct.pack(">I", 3))

    def receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (piece := self.socket.recv(size - len(data))):
            data += piece
        return data

    def option(self, number: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Replies up to the acknowledgement or error."""
        self.socket.sendall(n.OPTION.pack(n.OPTION_MAGIC, number, len(data)) + data)
        replies = []
        while True:
            _, _, kind, size = n.OPTION_REPLY.unpack(self.receive(n.OPTION_REPLY.size))
            replies.append((kind, self.receive(size)))
            if kind == n.REP_ACK or kind & 0x80000000:
                return replies

    def go(self, name: bytes = b"") -> None:
        data = struct.pack(">I", len(name)) + name + bytes(2)
        assert self.option(n.OPT_GO, data)[-1][0] == n.REP_ACK

    def request(self, kind: int, offset: int, size: int, data: bytes = b"", flags: int = 0) -> int:
        """Error number of a simple reply."""
        self.socket.sendall(n.REQUEST.pack(n.REQUEST_MAGIC, flags, kind, 7, offset, size) + data)
        magic, error, cookie = n.SIMPLE.unpack(self.receive(n.SIMPLE.size))
        assert (magic, cookie) == (n.SIMPLE_MAGIC, 7)
        return int(error)

    def gone(self) -> bool:
        return self.socket.recv(1) == b""


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Image]:
    create_image(tmp_path / "disk.qcow2", MIB, format="qcow2")
    with open_image(tmp_path / "disk.qcow2") as image:
        yield image


@pytest.fixture
def address(tmp_path: Path, image: Image) -> Iterator[Path]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    server = NbdServer(image, listener, export="disk")
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield tmp_path / "s"
    server.stop()
    thread.join()


def test_list_and_unknown(address: Path) -> None:
    client = Client(address)
    assert client.option(n.OPT_LIST)[0] == (n.REP_SERVER, struct.pack(">I", 4) + b"disk")
    assert client.option(77)[0][0] == n.REP_ERR_UNSUP
    assert client.option(n.OPT_INFO, struct.pack(">I", 5) + b"other" + bytes(2))[0][0] == n.REP_ERR_UNKNOWN
    assert client.option(n.OPT_GO, b"\xff" * 8)[0][0] == n.REP_ERR_INVALID
    assert client.option(n.OPT_SET_META_CONTEXT, bytes(8))[0][0] == n.REP_ERR_INVALID


def test_simple_requests(address: Path, image: Image) -> None:
    client = Client(address)
    client.go(b"disk")
    assert client.request(n.CMD_WRITE, 5, 3, b"abc", n.CMD_FLAG_FUA) == 0
    assert image.read(5, 3) == b"abc"
    assert client.request(n.CMD_READ, 5, 3) == 0
    assert client.receive(3) == b"abc"
    assert client.request(n.CMD_WRITE_ZEROES, 0, 512) == 0
    assert client.request(n.CMD_TRIM, 0, 65536) == 0
    assert client.request(n.CMD_FLUSH, 0, 0) == 0
    assert client.request(n.CMD_READ, MIB - 1, 2) == n.EINVAL
    assert client.request(n.CMD_WRITE, MIB, 1, b"x") == n.ENOSPC
    assert client.request(99, 0, 0) == n.EINVAL
    assert image.read(0, 512) == bytes(512)


def test_structured_block_status(address: Path, image: Image) -> None:
    image.write(65536, b"x" * 65536)
    client = Client(address)
    assert client.option(n.OPT_STRUCTURED_REPLY)[0][0] == n.REP_ACK
    query = struct.pack(">III", 0, 1, 15) + b"base:allocation"
    assert client.option(n.OPT_SET_META_CONTEXT, query)[0][0] == n.REP_META_CONTEXT
    client.go()
    client.socket.sendall(n.REQUEST.pack(n.REQUEST_MAGIC, 0, n.CMD_BLOCK_STATUS, 1, 0, MIB))
    _, flags, kind, _, size = n.STRUCTURED.unpack(client.receive(n.STRUCTURED.size))
    assert (flags, kind) == (n.CHUNK_DONE, n.CHUNK_BLOCK_STATUS)
    numbers = struct.unpack(f">{size // 4}I", client.receive(size))
    assert numbers == (1, 65536, 3, 65536, 0, MIB - 131072, 3)


@pytest.mark.parametrize(
    "rubbish",
    [
        n.REQUEST.pack(0x12345678, 0, n.CMD_READ, 0, 0, 512),
        n.REQUEST.pack(n.REQUEST_MAGIC, 0, n.CMD_READ, 0, 0, 0xFFFFFFFF),
        n.REQUEST.pack(n.REQUEST_MAGIC, 0, n.CMD_WRITE, 0, 0, 0xFFFFFFFF),
        n.REQUEST.pack(n.REQUEST_MAGIC, 0, n.CMD_DISC, 0, 0, 0),
    ],
)
def test_disconnects(address: Path, rubbish: bytes) -> None:
    client = Client(address)
    client.go()
    client.socket.sendall(rubbish)
    assert client.gone()
    Client(address).go()


def test_broken_handshake(address: Path) -> None:
    for rubbish in (bytes(16), n.OPTION.pack(n.OPTION_MAGIC, n.OPT_LIST, 1 << 30)):
        client = Client(address)
        client.socket.sendall(rubbish)
        assert client.gone()
