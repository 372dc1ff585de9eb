"""``python -m sublet``: the same as the ``sublet`` command."""

from __future__ import annotations

import sys

from sublet.cli import main

if __name__ == "__main__":
    sys.exit(main())
