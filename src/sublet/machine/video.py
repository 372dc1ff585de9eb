"""The display adapter of the machines with firmware: memory, ports, window, PCI function, video BIOS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sublet.devices.vga import TEXT_RAM_SIZE, VIDEO_MEMORY_SIZE, WINDOW_BASE, WINDOW_SIZE, Vga, VgaPci
from sublet.machine.firmware import VIDEO_BIOS, find_image
from sublet.machine.memory import DeviceMemory

if TYPE_CHECKING:
    from sublet.machine.firmware_board import FirmwareBoard

_PAGE_SIZE: Final = 4096


def plug_video(board: FirmwareBoard, slot: int) -> Vga:
    """Put the adapter on the board's buses; without a video BIOS on this host, it has none."""
    video_ram = DeviceMemory(board.memory, VIDEO_MEMORY_SIZE)
    vga = Vga(video_ram, DeviceMemory(board.memory, TEXT_RAM_SIZE), board.clock)
    for ports in vga.ports():
        board.buses.ports.add(ports.first, ports.count, ports.device)
    board.buses.mmio.add(WINDOW_BASE, WINDOW_SIZE, vga.window)
    function = VgaPci(vga, video_ram)
    path = find_image(VIDEO_BIOS, board.config.firmware_folders)
    if path is not None:
        image = path.read_bytes()
        size = max(1 << (len(image) - 1).bit_length(), _PAGE_SIZE)
        function.add_rom(image, DeviceMemory(board.memory, size))
    board.pci.plug(slot, function)
    return vga
