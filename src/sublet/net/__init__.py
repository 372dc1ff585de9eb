"""Networks as network cards see them: batches of packets out, batches of packets in."""

from __future__ import annotations

from sublet.net.packet import (
    ALL_OFFLOADS,
    HEADER_SIZE,
    MAX_FRAME_SIZE,
    MAX_PACKET_SIZE,
    MIN_FRAME_SIZE,
    MIN_PACKET_SIZE,
    NO_OFFLOAD,
    Offload,
    from_frame,
)
from sublet.net.sink import NullSink, PacketReceiver, PacketSink
from sublet.net.stream_sink import StreamSink, UnixSocketSink

__all__ = [
    "ALL_OFFLOADS",
    "HEADER_SIZE",
    "MAX_FRAME_SIZE",
    "MAX_PACKET_SIZE",
    "MIN_FRAME_SIZE",
    "MIN_PACKET_SIZE",
    "NO_OFFLOAD",
    "NullSink",
    "Offload",
    "PacketReceiver",
    "PacketSink",
    "StreamSink",
    "UnixSocketSink",
    "from_frame",
]
