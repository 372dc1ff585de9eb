"""``sublet disk mount``: an image of any format as a raw file of the host, through FUSE.

An NBD server of ours on a private socket, and nbdfuse (Debian's libnbd-bin) as its client: no root is needed
where the host has /dev/fuse and fusermount3.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

from sublet.cli.messages import say
from sublet.cli.parameters import Argument, Option
from sublet.errors import HostRefused, UsageError

_MOUNT_LIMIT_S: Final = 20.0
_POLL_S: Final = 0.05
FILE_NAME: Final = "disk"


def mount(
    file: Annotated[Path, Argument(metavar="FILE", help="The disk image.")],
    folder: Annotated[
        Path, Argument(metavar="FOLDER", help="An empty folder, in which the file `disk` appears.")
    ],
    readonly: Annotated[bool, Option("--readonly", help="Refuse writes.")] = False,
    format: Annotated[str | None, Option("--format", "-f", help="Format of FILE.")] = None,
    allow: Annotated[
        list[Path] | None,
        Option("--allow", metavar="FOLDER", help="A folder that parents may be in, besides FILE's own."),
    ] = None,
) -> None:
    """Show a disk as a raw file, FOLDER/disk, until Ctrl-C, SIGTERM or `fusermount3 -u FOLDER`.

    Any tool that knows raw disks can work on it: `fdisk -l`, `mount -o loop` (root), `dd`.
    """
    from sublet.block import open_image
    from sublet.block.nbd import NbdServer
    from sublet.cli.listener import listen, stops_on_signals

    program = require_host(folder)
    with open_image(file, format=format, readonly=readonly, folders=allow or ()) as image:
        with tempfile.TemporaryDirectory(prefix="sublet-mount-") as private:
            socket = Path(private) / "nbd"
            with listen(socket, None) as listener:
                server = NbdServer(image, listener)
                thread = threading.Thread(target=server.serve, daemon=True)
                thread.start()
                with _nbdfuse(program, folder, socket, readonly=readonly) as child:
                    say(f"{file} is {folder / FILE_NAME}")
                    with stops_on_signals(lambda: unmount(folder)):
                        child.wait()
                server.stop()
                thread.join()


def require_host(folder: Path) -> str:
    """The program that mounts.

    Raises:
        HostRefused: Something that it takes is not there; the message names it.
        UsageError: The folder is none, or not empty.
    """
    if not folder.is_dir() or any(folder.iterdir()):
        raise UsageError(f"{folder} is not an empty folder")
    program = shutil.which("nbdfuse")
    if program is None:
        raise HostRefused(
            "there is no nbdfuse on this host",
            remedy="Install it (Debian: libnbd-bin), or use 'sublet disk serve' with an NBD client.",
        )
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise HostRefused(
            "this host has no /dev/fuse that you may open",
            remedy="Use 'sublet disk serve' with an NBD client.",
        )
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise HostRefused(
            "there is no fusermount3 on this host", remedy="Install it (Debian: fuse3), or become root."
        )
    return program


@contextmanager
def _nbdfuse(
    program: str, folder: Path, socket: Path, *, readonly: bool
) -> Iterator[subprocess.Popen[bytes]]:
    """The running mount; unmounted at the end.

    Raises:
        HostRefused: It does not come up.
    """
    flags = ["-r"] if readonly else []
    command = [program, *flags, str(folder / FILE_NAME), "--unix", str(socket)]
    # A session of its own: Ctrl-C is for us, who unmount in order.
    child = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    try:
        _wait_until_there(child, folder)
        yield child
    finally:
        if child.poll() is None:
            unmount(folder)
            try:
                child.wait(_MOUNT_LIMIT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if child.stderr is not None:
            child.stderr.close()


def _wait_until_there(child: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + _MOUNT_LIMIT_S
    while not (folder / FILE_NAME).exists():
        if child.poll() is not None or time.monotonic() > deadline:
            said = (
                child.stderr.read().decode(errors="replace")
                if child.poll() is not None and child.stderr
                else ""
            )
            raise HostRefused(f"nbdfuse cannot mount on {folder}: {' '.join(said.split()) or 'no answer'}")
        time.sleep(_POLL_S)


def unmount(folder: Path) -> None:
    """Ask for the end of the mount; in use, it goes when its last user has gone."""
    for command in (["fusermount3", "-u", "-z", str(folder)], ["umount", "-l", str(folder)]):
        there = shutil.which(command[0]) is not None
        if there and subprocess.run(command, capture_output=True).returncode == 0:
            return
