"""Networks as devices see them: Ethernet frames out, Ethernet frames in."""

from __future__ import annotations

from sublet.net.sink import MAX_FRAME_SIZE, MIN_FRAME_SIZE, FrameReceiver, NullSink, PacketSink
from sublet.net.stream_sink import StreamSink, UnixSocketSink

__all__ = [
    "MAX_FRAME_SIZE",
    "MIN_FRAME_SIZE",
    "FrameReceiver",
    "NullSink",
    "PacketSink",
    "StreamSink",
    "UnixSocketSink",
]
