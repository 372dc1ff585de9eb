"""Let the command start as it does where pip installed it: from modules that are compiled already.

A developer's tree may have none (``PYTHONDONTWRITEBYTECODE``), and each start would then compile 300 modules
for a quarter of a second.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

from sublet.guest.store import cache_directory

_IMPORT_ALL: Final = """
import importlib, pkgutil, sublet
for module in pkgutil.walk_packages(sublet.__path__, "sublet."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def compile_modules() -> None:
    """Compile what ``sublet`` imports into the cache directory, for all processes started from now on.

    Raises:
        subprocess.CalledProcessError: A module of sublet's cannot be imported.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(cache_directory() / "benchmarks" / "compiled")
    subprocess.run([sys.executable, "-c", _IMPORT_ALL], check=True)
