"""A small encoder of ACPI Machine Language: each function returns the bytes of one term.

Reference: ACPI 6.4 §20 "ACPI Machine Language (AML) Specification", §6.4 "Resource Data Types".
"""

from __future__ import annotations

import struct
from typing import Final

_PATH_PREFIX: Final = b"\\^"


def name_string(path: str) -> bytes:
    """A name such as ``_SB_``, ``\\_SB_.PCI0`` or ``^DEV0``; segments are padded with underscores.

    Raises:
        ValueError: A segment is empty, longer than four characters, or has a character that AML forbids.
    """
    prefix = path[: len(path) - len(path.lstrip("\\^"))]
    rest = path[len(prefix) :]
    segments = [_segment(part) for part in rest.split(".")] if rest else []
    lead = prefix.encode("ascii")
    if not segments:
        return lead + b"\x00"
    if len(segments) == 1:
        return lead + segments[0]
    if len(segments) == 2:
        return lead + b"\x2e" + b"".join(segments)
    return lead + b"\x2f" + bytes([len(segments)]) + b"".join(segments)


def _segment(text: str) -> bytes:
    padded = text.ljust(4, "_")
    valid = text and len(padded) == 4 and padded.isascii() and padded.replace("_", "A").isalnum()
    if not valid or padded[0].isdigit() or padded != padded.upper():
        raise ValueError(f"not an AML name segment: {text!r}")
    return padded.encode("ascii")


def _package(opcode: bytes, body: bytes) -> bytes:
    """Opcode, PkgLength (which counts itself), body. §20.2.4."""
    if len(body) + 1 < 0x40:
        return opcode + bytes([len(body) + 1]) + body
    for extra in (1, 2, 3):
        total = len(body) + 1 + extra
        if total < 1 << (4 + 8 * extra):
            lead = extra << 6 | total & 0xF
            return opcode + bytes([lead]) + (total >> 4).to_bytes(extra, "little") + body
    raise ValueError(f"AML package of {len(body)} bytes is too long")


def integer(value: int) -> bytes:
    """The shortest encoding of an unsigned integer of up to 64 bits."""
    if value in (0, 1):
        return bytes([value])
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if 0 <= value < 1 << (8 * size):
            return bytes([prefix]) + value.to_bytes(size, "little")
    raise ValueError(f"not a 64-bit unsigned integer: {value}")


def string(text: str) -> bytes:
    """A NUL-terminated ASCII string."""
    return b"\x0d" + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """A compressed EISA identifier such as ``PNP0A08``. §19.3.4 "EISAID"."""
    letters = [ord(letter) - 0x40 for letter in text[:3]]
    value = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:], 16)
    return integer(int.from_bytes(value.to_bytes(4, "big"), "little"))


def name(path: str, value: bytes) -> bytes:
    """``Name (path, value)``."""
    return b"\x08" + name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """``Scope (path) { terms }``."""
    return _package(b"\x10", name_string(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    """``Device (path) { terms }``."""
    return _package(b"\x5b\x82", name_string(path) + b"".join(terms))


def package(*elements: bytes) -> bytes:
    """``Package () { elements }``, at most 255."""
    return _package(b"\x12", bytes([len(elements)]) + b"".join(elements))


ARG0: Final = b"\x68"
"""The first argument of a method."""


def method(path: str, arguments: int, *terms: bytes) -> bytes:
    """``Method (path, arguments) { terms }``, not serialized."""
    return _package(b"\x14", name_string(path) + bytes([arguments]) + b"".join(terms))


def if_(predicate: bytes, *terms: bytes) -> bytes:
    """``If (predicate) { terms }``."""
    return _package(b"\xa0", predicate + b"".join(terms))


def store(value: bytes, target: str) -> bytes:
    """``Store (value, target)``."""
    return b"\x70" + value + name_string(target)


def return_(value: bytes) -> bytes:
    """``Return (value)``."""
    return b"\xa4" + value


def buffer(data: bytes) -> bytes:
    """``Buffer () { data }``."""
    return _package(b"\x11", integer(len(data)) + data)


def resources(*descriptors: bytes) -> bytes:
    """``ResourceTemplate () { descriptors }``; a checksum of zero means "not checked"."""
    return buffer(b"".join(descriptors) + b"\x79\x00")


def io_ports(first: int, length: int) -> bytes:
    """``IO (Decode16, first, first, 1, length)``: fixed ports."""
    return b"\x47\x01" + struct.pack("<HHBB", first, first, 1, length)


def irq(number: int) -> bytes:
    """``IRQNoFlags () { number }``: an ISA interrupt, edge, active high."""
    return b"\x22" + struct.pack("<H", 1 << number)


def dma(channel: int) -> bytes:
    """``DMA (Compatibility, NotBusMaster, Transfer8) { channel }``."""
    return b"\x2a" + bytes((1 << channel, 0))


def fixed_memory(base: int, length: int) -> bytes:
    """``Memory32Fixed (ReadWrite, base, length)``."""
    return b"\x86\x09\x00\x01" + struct.pack("<II", base, length)


def bus_numbers(first: int, last: int) -> bytes:
    """``WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, ...)``."""
    return b"\x88\x0d\x00\x02\x0c\x00" + struct.pack("<HHHHH", 0, first, last, 0, last - first + 1)


def io_window(start: int, end: int) -> bytes:
    """``DWordIO`` window that a bridge hands down, half-open."""
    return b"\x87\x17\x00\x01\x0c\x03" + struct.pack("<IIIII", 0, start, end - 1, 0, end - start)


def memory_window_32(start: int, end: int) -> bytes:
    """``DWordMemory`` window, read-write, not cacheable, half-open."""
    return b"\x87\x17\x00\x00\x0c\x01" + struct.pack("<IIIII", 0, start, end - 1, 0, end - start)


def memory_window_64(start: int, end: int) -> bytes:
    """``QWordMemory`` window, read-write, not cacheable, half-open."""
    return b"\x8a\x2b\x00\x00\x0c\x01" + struct.pack("<QQQQQ", 0, start, end - 1, 0, end - start)
