"""``sublet disk``: create, look at, convert and mend disk images; one file a verb."""

from __future__ import annotations

from sublet.cli.verbs import Group

disk = Group(
    name="disk",
    help="Create, inspect, convert, check and serve disk images: raw, qcow2, vdi, vmdk, vhd, vhdx.",
    verbs={
        "live": "sublet.cli.disk.live:live",
        "mount": "sublet.cli.disk.mount:mount",
        "create": "sublet.cli.disk.create:create",
        "info": "sublet.cli.disk.info:info",
        "convert": "sublet.cli.disk.convert:convert",
        "check": "sublet.cli.disk.check:check",
        "snapshot": "sublet.cli.disk.snapshot:snapshot",
        "bitmap": "sublet.cli.disk.bitmap:bitmap",
        "backup": "sublet.cli.disk.backup:backup",
        "resize": "sublet.cli.disk.resize:resize",
        "compact": "sublet.cli.disk.compact:compact",
        "commit": "sublet.cli.disk.commit:commit",
        "rebase": "sublet.cli.disk.rebase:rebase",
        "compare": "sublet.cli.disk.compare:compare",
        "map": "sublet.cli.disk.map:map_",
        "dd": "sublet.cli.disk.dd:dd",
        "serve": "sublet.cli.disk.serve:serve",
    },
)
