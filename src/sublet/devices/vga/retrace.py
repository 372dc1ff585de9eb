"""Where the beam is: the two bits of input status 1 that programs wait for.

Reference: IBM VGA XGA Technical Reference (1992) §2 "Input Status Register 1".
"""

from __future__ import annotations

from sublet.hw import Clock

DISPLAY_DISABLED = 1 << 0
VERTICAL_RETRACE = 1 << 3

LINE_NS = 31_778
"""One scan line at the 31.469 kHz of every VGA mode."""
_FEWEST_LINES = 100
"""Below this the CRTC is not programmed yet; a picture of 449 lines is assumed."""
_DEFAULT_LINES = 449


class Retrace:
    """The beam of a CRTC, by the clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def status(self, crtc: bytes | bytearray) -> int:
        """Bits 0 and 3 of input status 1 now; both change within every picture, whatever ``crtc`` says."""
        total, displayed, start, end = _vertical(crtc)
        line, in_line = divmod(self._clock.now_ns() % (total * LINE_NS), LINE_NS)
        if start <= line < end:
            return VERTICAL_RETRACE | DISPLAY_DISABLED
        shown = min(crtc[0x01] + 1, crtc[0x00] + 4) / (crtc[0x00] + 5)
        return 0 if line < displayed and in_line < shown * LINE_NS else DISPLAY_DISABLED


def _vertical(crtc: bytes | bytearray) -> tuple[int, int, int, int]:
    """Lines of a picture, displayed ones, and the half-open range of the vertical retrace."""
    overflow = crtc[0x07]
    total = (crtc[0x06] | (overflow & 0x01) << 8 | (overflow & 0x20) << 4) + 2
    displayed = (crtc[0x12] | (overflow & 0x02) << 7 | (overflow & 0x40) << 3) + 1
    start = crtc[0x10] | (overflow & 0x04) << 6 | (overflow & 0x80) << 2
    length = (crtc[0x11] - start) & 0xF or 2
    if total < _FEWEST_LINES:
        total, displayed, start = _DEFAULT_LINES, 400, 412
    start = min(start, total - 2)
    return total, min(displayed, start), start, min(start + length, total)
