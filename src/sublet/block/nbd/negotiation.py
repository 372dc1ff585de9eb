"""The NBD handshake: fixed newstyle, without TLS.

Reference: "The NBD protocol" § "Newstyle negotiation" and § "Option types".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sublet.block.format import Image
from sublet.block.nbd import protocol as n
from sublet.block.nbd.stream import Stream

_OPTIONS_MAXIMUM = 64
"""Options that a client may send before it chooses an export."""


@dataclass
class Session:
    """What client and server agreed on."""

    structured: bool = False
    allocation: bool = False
    """The client asked for the context ``base:allocation``."""
    no_zeroes: bool = False


def negotiate(stream: Stream, image: Image, export: str) -> Session | None:
    """Agree with a client; None when it leaves or breaks the rules."""
    stream.send(struct.pack(">QQH", n.NBD_MAGIC, n.OPTION_MAGIC, n.FLAG_FIXED_NEWSTYLE | n.FLAG_NO_ZEROES))
    (flags,) = struct.unpack(">I", stream.receive(4))
    session = Session(no_zeroes=bool(flags & n.FLAG_NO_ZEROES))
    for _ in range(_OPTIONS_MAXIMUM):
        magic, option, size = n.OPTION.unpack(stream.receive(n.OPTION.size))
        if magic != n.OPTION_MAGIC or size > n.OPTION_MAXIMUM:
            return None
        data = stream.receive(size)
        if option == n.OPT_EXPORT_NAME:
            return _export_name(stream, image, export, session, data)
        if option == n.OPT_ABORT:
            _reply(stream, option, n.REP_ACK)
            return None
        if _answer(stream, image, export, session, option, data):
            return session
    return None


def _answer(stream: Stream, image: Image, export: str, session: Session, option: int, data: bytes) -> bool:
    """Answer one option; whether the session begins."""
    if option == n.OPT_LIST:
        name = export.encode()
        _reply(stream, option, n.REP_SERVER, struct.pack(">I", len(name)) + name)
        _reply(stream, option, n.REP_ACK)
    elif option in (n.OPT_INFO, n.OPT_GO):
        return _inform(stream, image, export, option, data)
    elif option == n.OPT_STRUCTURED_REPLY:
        session.structured = True
        _reply(stream, option, n.REP_ACK)
    elif option in (n.OPT_SET_META_CONTEXT, n.OPT_LIST_META_CONTEXT):
        _meta_context(stream, export, session, option, data)
    else:
        _reply(stream, option, n.REP_ERR_UNSUP)
    return False


def _reply(stream: Stream, option: int, kind: int, data: bytes = b"") -> None:
    stream.send(n.OPTION_REPLY.pack(n.REPLY_MAGIC, option, kind, len(data)) + data)


def _export_name(stream: Stream, image: Image, export: str, session: Session, data: bytes) -> Session | None:
    if data.decode("utf-8", "replace") not in ("", export):
        return None
    padding = b"" if session.no_zeroes else bytes(124)
    stream.send(struct.pack(">QH", image.size, transmission_flags(image, structured=False)) + padding)
    return session


def _inform(stream: Stream, image: Image, export: str, option: int, data: bytes) -> bool:
    if len(data) < 6:
        _reply(stream, option, n.REP_ERR_INVALID)
        return False
    (size,) = struct.unpack_from(">I", data)
    if size > len(data) - 6:
        _reply(stream, option, n.REP_ERR_INVALID)
        return False
    if data[4 : 4 + size].decode("utf-8", "replace") not in ("", export):
        _reply(stream, option, n.REP_ERR_UNKNOWN)
        return False
    flags = transmission_flags(image, structured=True)
    _reply(stream, option, n.REP_INFO, struct.pack(">HQH", n.INFO_EXPORT, image.size, flags))
    sizes = struct.pack(">HIII", n.INFO_BLOCK_SIZE, 1, max(4096, image.block_size), n.PAYLOAD_MAXIMUM)
    _reply(stream, option, n.REP_INFO, sizes)
    _reply(stream, option, n.REP_ACK)
    return option == n.OPT_GO


def transmission_flags(image: Image, *, structured: bool) -> int:
    """What the export can do."""
    flags = n.HAS_FLAGS | n.SEND_FLUSH | n.SEND_FUA | n.CAN_MULTI_CONN
    flags |= n.SEND_DF if structured else 0
    return flags | (n.READ_ONLY if image.readonly else n.SEND_TRIM | n.SEND_WRITE_ZEROES)


def _meta_context(stream: Stream, export: str, session: Session, option: int, data: bytes) -> None:
    queries = _queries(data)
    if queries is None or (option == n.OPT_SET_META_CONTEXT and not session.structured):
        _reply(stream, option, n.REP_ERR_INVALID)
        return
    name, wanted = queries
    if name not in ("", export):
        _reply(stream, option, n.REP_ERR_UNKNOWN)
        return
    listing = option == n.OPT_LIST_META_CONTEXT
    found = n.META_BASE_ALLOCATION in wanted or (listing and (not wanted or "base:" in wanted))
    if not listing:
        session.allocation = found
    if found:
        _reply(stream, option, n.REP_META_CONTEXT, struct.pack(">I", 1) + n.META_BASE_ALLOCATION.encode())
    _reply(stream, option, n.REP_ACK)


def _queries(data: bytes) -> tuple[str, list[str]] | None:
    """(export, queries), or None where the structure does not fit."""
    texts: list[str] = []
    offset = 0
    count = 1
    while len(texts) < count:
        if offset + 4 > len(data):
            return None
        (size,) = struct.unpack_from(">I", data, offset)
        offset += 4
        if size > len(data) - offset:
            return None
        texts.append(data[offset : offset + size].decode("utf-8", "replace"))
        offset += size
        if len(texts) == 1:
            if offset + 4 > len(data):
                return None
            (more,) = struct.unpack_from(">I", data, offset)
            offset += 4
            count += more
    return texts[0], texts[1:]
