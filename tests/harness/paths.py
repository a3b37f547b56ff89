"""Where the harness finds the checkout, its cache and its scratch space.

The cache holds what is expensive to make and never changes (tools by version, wheels, images); it is
shared by every checkout of a user. Scratch directories hold one run and are named so that a later
run can tell who left them. Standard library only: this is loaded before there is a virtual environment.
"""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
VENV = CHECKOUT / ".venv"
SHIM = VENV / "bin" / "containerd-shim-manor-v2"


def cache_dir() -> Path:
    """The user's cache for Manor: `$XDG_CACHE_HOME/manor`, else `~/.cache/manor`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "manor"


def scratch_dir() -> Path:
    """Where runs make their directories: `$MANOR_SCRATCH`, else /tmp. Kept short for unix sockets (107 bytes)."""
    return Path(os.environ.get("MANOR_SCRATCH", "/tmp"))
