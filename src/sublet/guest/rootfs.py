"""A full Debian on a disk image: unpack, configure, make the file system.

The maintainer scripts of the packages run in one of three places, the first that is possible:

1. in a ``chroot`` on this host, when we are root;
2. in a machine of our own, when we are not (``configure`` names who starts it);
3. in the guest itself, the first time it boots.

The same script, ``scripts/second-stage``, does the work in each.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sublet.errors import HostRefused
from sublet.guest.archive import PackageIndex
from sublet.guest.script_files import script
from sublet.guest.store import Progress
from sublet.guest.tree import RootTree, forget_tree

CHOSEN: Final = (
    "apt",
    "ca-certificates",
    "dbus",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "libpam-systemd",
    "login",
    "nano",
    "netbase",
    "passwd",
    "procps",
    "systemd",
    "systemd-sysv",
    "systemd-timesyncd",
    "udev",
    "usr-is-merged",
)
"""Packages of the ``debian`` guest, beside those of priority "required"."""

DISK_MIB: Final = 4096
_UUID: Final = "5b1e7a0c-0000-4000-8000-000000000012"
_SECOND_STAGE_LIMIT_S: Final = 1800
_DEVICES: Final = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
_SOURCES: Final = "# Name an archive to install from: file:/mnt for one on a disk, or a mirror.\n"
_NETWORK: Final = (
    "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n\n[DHCPv4]\nUseDomains=yes\n\n"
    "[Link]\nRequiredForOnline=no\n"
)
_RESOLV_CONF_PATH: Final = (
    "[Path]\nPathChanged=/run/systemd/netif/state\n\n[Install]\nWantedBy=multi-user.target\n"
)
_RESOLV_CONF_SERVICE: Final = (
    "[Unit]\nConditionPathIsSymbolicLink=!/etc/resolv.conf\n\n"
    "[Service]\nType=oneshot\nExecStart=/usr/local/sbin/resolv-conf\n"
)


def package_names(index: PackageIndex, extra: Sequence[str]) -> list[str]:
    """Names of the packages that a root disk starts from; what they depend on comes on top."""
    return list(dict.fromkeys((*extra, *CHOSEN, *index.with_priority("required"))))


def unpack_root(tree: RootTree, debs: Sequence[Path], kernel_deb: Path, progress: Progress) -> None:
    """Fill a tree from packages, the modules of the kernel that boots it, and our own settings."""
    for number, deb in enumerate(debs):
        progress("unpacking packages", number, len(debs))
        tree.unpack(deb)
    progress("unpacking packages", len(debs), len(debs))
    tree.unpack_some(kernel_deb, ("lib/modules/", "usr/lib/modules/"))
    _write_settings(tree)
    tree.write("var/lib/sublet/packages", "".join(f"{name}\n" for name in tree.names))
    tree.write("var/lib/sublet/second-stage", script("second-stage"), 0o755)


def _write_settings(tree: RootTree) -> None:
    for name in (
        "dev",
        "proc",
        "sys",
        "run",
        "var/lib/dpkg/updates",
        "etc/systemd/network",
        "etc/apt/sources.list.d",
    ):
        tree.directory(name)
    tree.directory("tmp", 0o1777)
    tree.directory("root", 0o700)
    tree.write("var/lib/dpkg/available", "")
    tree.write("var/lib/dpkg/info/format", "1\n")
    tree.write("var/lib/dpkg/arch", "amd64\n")
    tree.write("etc/hostname", "debian\n")
    tree.write(
        "etc/hosts", "127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost ip6-loopback\n"
    )
    tree.write("etc/fstab", "/dev/vda / ext4 defaults 0 1\n")
    tree.write("etc/apt/sources.list", _SOURCES)
    tree.write("etc/systemd/network/80-dhcp.network", _NETWORK)
    tree.write("etc/systemd/system/resolv-conf.path", _RESOLV_CONF_PATH)
    tree.write("etc/systemd/system/resolv-conf.service", _RESOLV_CONF_SERVICE)
    tree.write("usr/local/sbin/resolv-conf", script("resolv-conf"), 0o755)
    tree.write("etc/machine-id", "")


def configure_here(tree: RootTree, progress: Progress) -> bool:
    """Run the maintainer scripts in a chroot; False when this host does not let us.

    Raises:
        HostRefused: The scripts ran and failed.
    """
    if os.geteuid() != 0 or not _make_devices(tree.path / "dev"):
        return False
    progress("configuring packages")
    log = tree.path.with_name("second-stage.log")
    isolation = _isolation()
    script_line = _WITH_PROC if isolation else _SECOND_STAGE
    with log.open("wb") as output:
        result = subprocess.run(
            [*isolation, "chroot", str(tree.path), "/bin/sh", "-c", script_line],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            timeout=_SECOND_STAGE_LIMIT_S,
            check=False,
        )
    if result.returncode != 0 or (tree.path / "var/lib/sublet/second-stage").exists():
        lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        raise HostRefused(f"configuring the guest's packages failed: {lines[-1]}")
    _clear(tree.path / "dev")
    forget_tree(tree)
    return True


_SECOND_STAGE: Final = "exec /var/lib/sublet/second-stage"
# Only in a mount namespace: elsewhere the mount outlives the chroot, and removing the tree meets it.
_WITH_PROC: Final = f"mount -t proc proc /proc 2>/dev/null; {_SECOND_STAGE}"


def _isolation() -> list[str]:
    """Namespaces for the chroot, where we may: its mounts and processes then end with it."""
    prefix = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--net"]
    try:
        allowed = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return []
    return prefix if allowed else []


def _make_devices(directory: Path) -> bool:
    """Make the device nodes that scripts expect; False where the host forbids it."""
    try:
        for name, major, minor in _DEVICES:
            os.mknod(directory / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
            (directory / name).chmod(0o666)
        with (directory / "null").open("wb"):
            return True
    except OSError:
        _clear(directory)
        return False


def _clear(directory: Path) -> None:
    for entry in directory.iterdir():
        entry.unlink()


def make_image(tree: RootTree, image: Path, progress: Progress, size_mib: int = DISK_MIB) -> None:
    """Write the tree to a new sparse ext4 image, with the e2fsprogs that the tree itself has.

    Where we are not root, the owners that the packages asked for are set in the image afterwards.
    """
    progress("making the disk image")
    with image.open("xb") as stream:
        os.truncate(stream.fileno(), size_mib << 20)
    _run_own(
        tree,
        "mke2fs",
        "-q",
        "-F",
        "-t",
        "ext4",
        "-L",
        "debian",
        "-m",
        "1",
        *_FORMAT,
        "-d",
        str(tree.path),
        str(image),
    )
    if os.geteuid() != 0:
        commands = image.with_name("owners.debugfs")
        commands.write_text("".join(_owner_commands(tree)))
        _run_own(tree, "debugfs", "-w", "-f", str(commands), str(image))
        commands.unlink()


_FORMAT: Final = ("-U", _UUID, "-E", f"root_owner=0:0,hash_seed={_UUID}")


def _owner_commands(tree: RootTree) -> list[str]:
    """``debugfs`` commands that give every file of the image its owner, group and mode."""
    commands = []
    for parent, directories, files in os.walk(tree.path):
        for entry in sorted(directories + files):
            name = os.path.relpath(os.path.join(parent, entry), tree.path)
            owner = tree.owners.get(name)
            quoted = f'"/{name}"'
            commands.append(f"sif {quoted} uid {owner.uid if owner else 0}\n")
            commands.append(f"sif {quoted} gid {owner.gid if owner else 0}\n")
            if owner and not stat.S_ISLNK(owner.mode):
                commands.append(f"sif {quoted} mode {owner.mode:#o}\n")
    return commands


def _run_own(tree: RootTree, tool: str, *arguments: str) -> None:
    """Run one of the tree's own programs on this host, with the tree's loader and libraries."""
    libraries = tree.path / "usr/lib/x86_64-linux-gnu"
    loader = libraries / "ld-linux-x86-64.so.2"
    command = [str(loader), "--library-path", str(libraries), str(tree.path / "usr/sbin" / tool), *arguments]
    environment = {**os.environ, "MKE2FS_CONFIG": str(tree.path / "etc/mke2fs.conf"), "LC_ALL": "C.UTF-8"}
    result = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if result.returncode != 0:
        said = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        remedy = (
            "Free some space, or set XDG_CACHE_HOME to a directory on a larger disk."
            if "space" in said
            else ""
        )
        raise HostRefused(f"{tool} failed: {said}", remedy=remedy)
