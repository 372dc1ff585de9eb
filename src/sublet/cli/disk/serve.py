"""``sublet disk serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from sublet.cli.disk.arguments import Allow, AsJson, File, Format
from sublet.cli.disk.output import print_json
from sublet.cli.messages import say
from sublet.cli.parameters import Option


def serve(
    file: File,
    socket: Annotated[
        Path | None, Option("--socket", metavar="PATH", help="Unix socket to listen on.")
    ] = None,
    port: Annotated[
        int | None, Option(minimum=0, maximum=65535, help="Port on the loopback address instead; 0: any.")
    ] = None,
    export: Annotated[str, Option(help="Name of the export.")] = "",
    readonly: Annotated[bool, Option("--readonly", help="Refuse writes.")] = False,
    once: Annotated[bool, Option("--once", help="Leave when the first client has gone.")] = False,
    format: Format = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Serve a disk to NBD clients, until Ctrl-C or SIGTERM.

    Clients are not authenticated: a Unix socket is for who may open it, a port for every user of this host.
    """
    from sublet.block import open_image
    from sublet.block.nbd import NbdServer
    from sublet.cli.listener import address_of, listen, stops_on_signals

    with open_image(file, format=format, readonly=readonly, folders=allow or ()) as image:
        with listen(socket, port) as listener:
            server = NbdServer(image, listener, export=export)
            where = address_of(listener, export)
            if as_json:
                print_json({"file": str(file), "uri": where})
            else:
                say(f"serving {file} at {where}")
            with stops_on_signals(server.stop):
                server.serve(once=once)
