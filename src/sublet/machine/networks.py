"""The network cards of a machine and what they are plugged into."""

from __future__ import annotations

import os
import threading
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from sublet.control import Call, Operations
from sublet.control.directory import runtime_directory
from sublet.devices.pci import PciDevice
from sublet.devices.virtio.net.device import MAX_PAIRS, VirtioNet
from sublet.errors import UsageError
from sublet.hw import Clock, Executor, GuestMemory
from sublet.machine.config import MachineConfig
from sublet.net.cable import Cable
from sublet.net.kinds import Nic, find_kind, open_network
from sublet.net.options import NetOptions, parse_net

if TYPE_CHECKING:
    from sublet.devices.net.e1000 import E1000

MODELS: Final = ("virtio", "e1000")
_QEMU_OUI: Final = b"\x52\x54\x00"
"""Locally administered; what most virtual machines use."""
_RECORDING_TIMEOUT_S: Final = 5.0
"""How long the machine's end waits for a recording to be written out."""
_MTU_MINIMUM, _MTU_MAXIMUM = 68, 65521


class Device(Protocol):
    """What every model of card can do."""

    mac: bytes

    @property
    def link_up(self) -> bool: ...
    def set_link(self, up: bool) -> None: ...
    def statistics(self) -> dict[str, int]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Card:
    """One network card."""

    name: str
    model: str
    options: NetOptions
    cable: Cable
    device: Device

    def describe(self) -> dict[str, Any]:
        """For ``sublet net ls``."""
        return {
            "nic": self.name,
            "kind": self.options.kind,
            "options": self.options.text,
            "model": self.model,
            "mac": self.device.mac.hex(":"),
            "link": "up" if self.device.link_up else "down",
        }


class Networks:
    """Every card that the definition lists, in its order.

    Args:
        config: The machine.
        memory: Guest RAM.
        executor: Runs the devices' work.
        clock: Time for bad lines and interrupt throttling.

    Raises:
        UsageError: A kind or an option is wrong.
        HostRefused: A network cannot be opened.
    """

    def __init__(self, config: MachineConfig, memory: GuestMemory, executor: Executor, clock: Clock) -> None:
        self.cards: list[Card] = []
        self._ended = threading.Event()
        self._recordings: list[threading.Event] = []
        options = [parse_net(text) for text in config.net]
        for each in options:
            find_kind(each)
        with ExitStack() as opened:
            opened.callback(self.close)
            for index, each in enumerate(options):
                self.cards.append(_make_card(config, index, each, memory, executor, clock))
            opened.pop_all()

    @property
    def virtio(self) -> list[VirtioNet]:
        """The cards that are virtio devices; their board closes them."""
        return [card.device for card in self.cards if isinstance(card.device, VirtioNet)]

    @property
    def pci(self) -> list[PciDevice]:
        """The cards that are PCI functions themselves; a board plugs them in after the virtio devices."""
        return [card.device for card in self.cards if isinstance(card.device, PciDevice)]

    def card(self, name: object) -> Card:
        """A card by its name; the first without one.

        Raises:
            UsageError: There is none of that name.
        """
        found = [card for card in self.cards if name in (None, card.name)]
        if not found:
            names = ", ".join(card.name for card in self.cards) or "none"
            raise UsageError(f"there is no network card {name!r}", remedy=f"The machine has {names}.")
        return found[0]

    def add_operations(self, operations: Operations) -> None:
        """Let the machine tell of its networks, and plug and unplug cables."""

        def rows(parameters: dict[str, Any], call: Call) -> list[dict[str, Any]]:
            return [card.describe() for card in self.cards]

        def statistics(parameters: dict[str, Any], call: Call) -> list[dict[str, Any]]:
            return [
                {"nic": card.name, **dict(sorted(card.device.statistics().items()))} for card in self.cards
            ]

        def inspect(parameters: dict[str, Any], call: Call) -> list[dict[str, Any]]:
            what = str(parameters.get("what"))
            return [{"nic": card.name, **row} for card in self.cards for row in card.cable.inspect(what)]

        def link(parameters: dict[str, Any], call: Call) -> None:
            self.card(parameters.get("nic")).device.set_link(parameters.get("up") is True)

        def record(parameters: dict[str, Any], call: Call) -> dict[str, int]:
            from sublet.machine.capture import capture
            from sublet.net.capture.recorder import Recorded

            cables = [
                Recorded(card.name, card.options.text, card.device.mac, card.cable) for card in self.cards
            ]
            done = threading.Event()
            self._recordings.append(done)
            try:
                return capture(parameters, call, cables, self._ended)
            finally:
                done.set()

        operations.add("net.capture", record)
        operations.add("net.ls", rows)
        operations.add("net.stats", statistics)
        operations.add("net.inspect", inspect)
        operations.add("net.link", link)

    def close(self) -> None:
        """Unplug every card and end recordings. Idempotent."""
        self._ended.set()
        for done in self._recordings:
            done.wait(_RECORDING_TIMEOUT_S)
        with ExitStack() as closing:
            for card in self.cards:
                closing.callback(card.device.close)


def _make_card(
    config: MachineConfig,
    index: int,
    options: NetOptions,
    memory: GuestMemory,
    executor: Executor,
    clock: Clock,
) -> Card:
    model = options.get("model") or MODELS[0]
    if model not in MODELS:
        raise options.error("model", f"is {' or '.join(MODELS)}, not {model!r}")
    nic = Nic(
        machine=config.name or config.suggested_name,
        name=f"net{index}",
        mac=options.address("mac") or _mac(index),
        mtu=options.integer("mtu", 1500, _MTU_MINIMUM, _MTU_MAXIMUM),
        queues=options.integer("queues", min(config.cpus, MAX_PAIRS), 1, MAX_PAIRS),
        clock=clock,
        directory=runtime_directory,
    )
    # A cable to nowhere is one that is not plugged in: firmware would wait minutes for an answer.
    up = options.flag("link", default=options.kind != "none")
    cable = open_network(options, nic)
    device: VirtioNet | E1000
    if model == "e1000":
        from sublet.devices.net.e1000 import E1000

        device = E1000(cable, memory, executor, clock, mac=nic.mac)
    else:
        device = VirtioNet(cable, executor, mac=nic.mac, mtu=nic.mtu, pairs=nic.queues)
    device.set_link(up)
    return Card(nic.name, model, options, cable, device)


def _mac(index: int) -> bytes:
    """An address that stays over resets and differs between the machines of this host."""
    identity = f"{os.uname().nodename}/{os.getpid()}/{index}".encode()
    return _QEMU_OUI + zlib.crc32(identity).to_bytes(4, "big")[1:]
