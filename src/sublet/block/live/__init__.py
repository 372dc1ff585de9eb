"""Work on the disks of running machines: snapshot, commit, stream, mirror, back up, beside the guest."""

from __future__ import annotations

from sublet.block.live.backup import back_up
from sublet.block.live.drive import Drive
from sublet.block.live.job import Job
from sublet.block.live.merge import commit, stream
from sublet.block.live.mirroring import mirror
from sublet.block.live.overlay import snapshot

__all__ = ["Drive", "Job", "back_up", "commit", "mirror", "snapshot", "stream"]
