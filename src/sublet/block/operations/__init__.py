"""Work on whole images: convert, compare, commit, rebase and compact, with progress."""

from __future__ import annotations

from sublet.block.operations.backup import back_up_increment
from sublet.block.operations.commit import commit
from sublet.block.operations.compact import compact
from sublet.block.operations.compare import Difference, compare
from sublet.block.operations.convert import convert
from sublet.block.operations.copy import Progress, copy
from sublet.block.operations.ranges import copy_range
from sublet.block.operations.rebase import rebase

__all__ = [
    "Difference",
    "Progress",
    "back_up_increment",
    "commit",
    "compact",
    "compare",
    "convert",
    "copy",
    "copy_range",
    "rebase",
]
