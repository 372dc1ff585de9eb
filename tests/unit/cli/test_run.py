"""``sublet run`` from its flags to a machine's definition, and from its end to an exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sublet.guest
import sublet.guest.firmware
import sublet.machine
from sublet.cli import main
from sublet.errors import HostRefused
from sublet.guest import PreparedGuest, Progress
from sublet.machine import Console, DiskConfig, MachineConfig, MachineResult, firmware

KERNEL = Path("/cache/vmlinuz")


class Recorder:
    """Stands for the machine: keeps the definition, ends as told."""

    def __init__(self) -> None:
        self.config: MachineConfig | None = None
        self.result = MachineResult(0, "the guest powered off", {"exits.pio_out": 7}, {})
        self.error: Exception | None = None

    def run(self, config: MachineConfig, console: Console) -> MachineResult:
        self.config = config
        if self.error is not None:
            raise self.error
        return self.result


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(sublet.machine, "run_machine", recorder.run)
    monkeypatch.setattr(firmware, "missing_packages", lambda config: ())
    return recorder


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the guests prepared; one has a disk and needs 1 GiB."""
    names: list[str] = []

    def prepare(name: str, progress: Progress) -> PreparedGuest:
        names.append(name)
        progress("building")
        return PreparedGuest(name, KERNEL, None, "console=ttyS0", (Path("/cache/root.raw"),), 1024)

    monkeypatch.setattr(sublet.guest, "prepare_guest", prepare)
    return names


def run(machine: Recorder, *words: str) -> MachineConfig:
    assert main(["run", *words]) == 0
    assert machine.config is not None
    return machine.config


def test_the_default_guest(machine: Recorder, guest: list[str]) -> None:
    config = run(machine)
    assert guest == ["default"]
    assert (config.kernel, config.cmdline, config.memory_mib, config.cpus) == (
        KERNEL,
        "console=ttyS0",
        1024,
        1,
    )
    assert (config.engine, config.reboot) == ("auto", True)


def test_a_guest_with_more(machine: Recorder, guest: list[str]) -> None:
    config = run(
        machine,
        "debian",
        "--append",
        "quiet",
        "--disk",
        "a.raw",
        "--disk",
        "b.raw",
        "--net",
        "none",
        "--memory",
        "2G",
    )
    assert guest == ["debian"]
    assert config.cmdline == "console=ttyS0 quiet"
    assert [disk.path.name for disk in config.disks] == ["root.raw", "a.raw", "b.raw"]
    assert (config.net, config.memory_mib) == (("none",), 2048)


def test_a_kernel_of_the_users_own(machine: Recorder, guest: list[str]) -> None:
    config = run(
        machine,
        *("--kernel", "k", "--initrd", "i", "--append", "console=ttyS0", "--engine", "translate"),
        *("--cpus", "2", "--disk", "d", "--no-reboot"),
    )
    assert guest == []
    assert config == MachineConfig(
        kernel=Path("k"),
        initrd=Path("i"),
        cmdline="console=ttyS0",
        memory_mib=512,
        cpus=2,
        disks=(DiskConfig(path=Path("d")),),
        net=("nat",),
        engine="translate",
        reboot=False,
    )


@pytest.mark.parametrize(
    ("status", "reason"), [(80, "the guest reset the machine"), (82, "the guest panicked")]
)
def test_an_unusual_end_is_told(
    machine: Recorder, guest: list[str], status: int, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.result = MachineResult(status, reason, {}, {})
    assert main(["run"]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"sublet: {reason}\n" in captured.err


def test_statistics_go_to_standard_error(
    machine: Recorder, guest: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--stats=json"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err.splitlines()[-1]) == {"exits.pio_out": 7}


def test_private_disks_go_away_when_the_machine_fails(
    machine: Recorder, monkeypatch: pytest.MonkeyPatch, guest: list[str]
) -> None:
    closed: list[Any] = []
    monkeypatch.setattr(PreparedGuest, "close", lambda self: closed.append(self))
    machine.error = RuntimeError("boom")
    assert main(["run"]) == 70
    assert len(closed) == 1


@pytest.mark.parametrize(
    ("words", "board"),
    [
        (["--disk", "d"], "pc"),
        (["--cdrom", "c.iso"], "pc"),
        (["--disk", "d", "--firmware", "uefi"], "q35"),
        (["--machine", "q35"], "q35"),
        (["--boot", "network"], "pc"),
    ],
)
def test_firmware_boots_where_nothing_else_is_named(
    machine: Recorder, guest: list[str], words: list[str], board: str
) -> None:
    config = run(machine, *words)
    assert guest == []
    assert (config.kernel, config.machine) == (None, board)


def test_uefi_starts_a_kernel(machine: Recorder, guest: list[str]) -> None:
    config = run(machine, "--kernel", "k", "--append", "quiet", "--firmware", "uefi")
    assert (config.kernel, config.cmdline, config.machine) == (Path("k"), "quiet", "q35")


def test_the_bios_starts_a_kernel(machine: Recorder, guest: list[str]) -> None:
    assert run(machine, "--kernel", "k", "--machine", "q35").machine == "q35"
    assert run(machine, "--kernel", "k", "--firmware", "bios").machine == "pc"


def test_firmware_starts_a_guest_by_name(machine: Recorder, guest: list[str]) -> None:
    """Its own disk stays where its command line looks for it."""
    config = run(machine, "debian", "--machine", "q35", "--disk", "d")
    assert (config.kernel, config.machine, guest) == (KERNEL, "q35", ["debian"])
    assert [config.bus_of(disk) for disk in config.disks] == ["virtio", "ahci"]
    assert run(machine, "debian", "--cdrom", "c.iso").machine == "pc"


def test_firmware_that_is_not_installed_is_fetched(
    machine: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firmware, "missing_packages", lambda config: ("seabios", "ipxe-qemu"))
    monkeypatch.setattr(sublet.guest.firmware, "prepare_firmware", lambda name, progress: Path("/f") / name)
    assert run(machine, "--disk", "d").firmware_folders == (Path("/f/seabios"), Path("/f/ipxe-qemu"))


def test_firmware_that_cannot_be_fetched(
    machine: Recorder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(name: str, progress: Progress) -> Path:
        raise HostRefused("no network", remedy="Plug it in.")

    monkeypatch.setattr(firmware, "missing_packages", lambda config: ("ovmf",))
    monkeypatch.setattr(sublet.guest.firmware, "prepare_firmware", refuse)
    assert main(["run", "--firmware", "uefi"]) == 3
    message = " ".join(capsys.readouterr().err.split())
    assert "ovmf is not installed, and cannot be fetched: no network" in message
    assert "Plug it in. Or install ovmf" in message


def test_the_boot_order_and_removable_media(machine: Recorder, guest: list[str]) -> None:
    config = run(machine, "--boot", "cdrom,disk", "--cdrom", "a.iso", "--floppy", "b.img")
    assert config.boot == ("cdrom", "disk")
    assert (config.cdroms, config.floppies) == ((Path("a.iso"),), (Path("b.img"),))


@pytest.mark.parametrize(
    "words",
    [
        ["--boot", "tape"],
        ["--boot", "disk,disk"],
        ["--boot", ""],
        ["--machine", "microvm", "--cdrom", "c.iso"],
        ["--disk", "d", "--append", "quiet"],
        ["--kernel", "k", "--boot", "disk"],
        ["debian", "--machine", "pc", "--boot", "disk"],
        ["debian", "--machine", "microvm", "--firmware", "bios"],
    ],
)
def test_machines_that_cannot_be(machine: Recorder, guest: list[str], words: list[str]) -> None:
    assert main(["run", *words]) == 2
