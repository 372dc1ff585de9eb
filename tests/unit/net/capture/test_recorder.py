"""Captures, read by tshark."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from sublet.errors import UsageError
from sublet.net import HEADER_SIZE
from sublet.net.cable import Cable, Direction
from sublet.net.capture import Recorder
from sublet.net.capture.recorder import Recorded
from sublet.net.checksum import ones_complement_sum
from sublet.net.packet import GSO_TCPV4, NEEDS_CHECKSUM, PacketHeader
from sublet.testing import FakeCard, FakeSink

MAC = bytes.fromhex("525400000001")


def udp(port: int, data: bytes = b"x" * 20) -> bytes:
    segment = b"\x0f\xa0" + port.to_bytes(2, "big") + (8 + len(data)).to_bytes(2, "big") + b"\0\0" + data
    ip = (
        b"\x45\0" + (20 + len(segment)).to_bytes(2, "big") + bytes.fromhex("00010000401166bd0a0000010a000002")
    )
    return b"\x52\x54\0\0\0\2" + MAC + b"\x08\0" + ip + segment


class Line:
    """A recorded cable."""

    def __init__(self, path: Path, **options: object) -> None:
        self.sink = FakeSink()
        self.cable = Cable(self.sink)
        self.card = FakeCard(self.cable)
        recorded = [Recorded("net0", "nat", MAC, self.cable)]
        self.recorder = Recorder(path.open("wb"), recorded, **options)  # type: ignore[arg-type]


def read(path: Path, *fields: str) -> list[list[str]]:
    """Fields of each packet, by tshark; skips without it."""
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    words = ["tshark", "-r", str(path), "-T", "json", "-o", "udp.check_checksum:TRUE"]
    output = subprocess.run(words, capture_output=True, check=True).stdout
    layers = [packet["_source"]["layers"] for packet in json.loads(output)]
    assert "_ws.malformed" not in output.decode()
    return [[str(_find(layer, field)) for field in fields] for layer in layers]


def _find(tree: object, name: str) -> object:
    if not isinstance(tree, dict):
        return None
    if name in tree:
        return tree[name]
    return next((found for value in tree.values() if (found := _find(value, name)) is not None), None)


def test_packets_of_both_directions_and_drops_are_recorded(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    line = Line(path)
    line.card.send(udp(7053))
    line.sink.deliver(udp(7054, b"y" * 21))
    line.cable.note_drop(Direction.OUTBOUND, bytes(HEADER_SIZE) + udp(7055), "loss")
    line.recorder.close()
    line.card.send(udp(7056))
    found = read(path, "udp.dstport", "frame.packet_flags_direction", "frame.comment", "frame.interface_name")
    assert [row[0] for row in found] == ["7053", "7054", "7055"]
    assert [int(row[1], 16) for row in found] == [2, 1, 2]
    assert [row[2] for row in found] == ["None", "None", "dropped: loss"]
    assert {row[3] for row in found} == {"net0"}


def test_filter_limit_and_snap_length(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    line = Line(path, filter_text="port 7053", limit=2, snap_length=64)
    for port in (7053, 7054, 7053, 7053):
        line.card.send(udp(port, bytes(200)))
    assert line.recorder.finished.wait(20)
    line.recorder.close()
    assert line.recorder.recorded == 2
    assert read(path, "udp.dstport", "frame.len", "frame.cap_len") == [["7053", "242", "64"]] * 2


def test_checksums_that_the_card_left_undone_are_right_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    line = Line(path)
    frame = bytearray(udp(7053))
    pseudo = ones_complement_sum(frame[26:34] + b"\0\x11" + (len(frame) - 34).to_bytes(2, "big"))
    frame[40:42] = pseudo.to_bytes(2, "big")
    line.sink.card.receive(
        [PacketHeader(NEEDS_CHECKSUM, checksum_start=34, checksum_offset=6).pack() + frame]
    )
    line.recorder.close()
    (status,) = read(path, "udp.checksum.status")
    assert status == ["1"], "good"


def test_large_packets_are_recorded_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    line = Line(path)
    ip = b"\x45\0" + (40 + 50000).to_bytes(2, "big") + bytes.fromhex("000100004006000001020304 05060708")
    tcp = bytes.fromhex("04d20050000003e800000000501000ff00000000")
    header = PacketHeader(NEEDS_CHECKSUM, GSO_TCPV4, 54, 1448, 34, 16).pack()
    line.sink.card.receive([header + bytes(12) + b"\x08\0" + ip + tcp + bytes(50000)])
    line.recorder.close()
    assert read(path, "frame.len", "tcp.len") == [["50054", "50000"]]


def test_a_bad_filter_is_refused_before_anything_is_written() -> None:
    output = io.BytesIO()
    with pytest.raises(UsageError):
        Recorder(output, [], filter_text="prot 53")
    assert output.getvalue() == b""


def test_a_full_disk_ends_the_recording_and_is_told() -> None:
    sink = FakeSink()
    cable = Cable(sink)
    card = FakeCard(cable)
    recorder = Recorder(open("/dev/full", "wb"), [Recorded("net0", "", MAC, cable)])  # noqa: SIM115
    while not recorder.finished.is_set():
        card.send(udp(7053, bytes(1000)))
    with pytest.raises(OSError, match="No space"):
        recorder.close()
