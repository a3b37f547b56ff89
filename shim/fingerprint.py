"""What tells one state of Manor's code from another. Loads next to nothing: each start of a warden asks."""

from __future__ import annotations

import os
import sys

from runtime.linux.fds import read_whole

try:
    # hashlib would bring OpenSSL along
    from _sha2 import sha256  # type: ignore[import-not-found]
except ImportError:  # Python 3.11
    from _sha256 import sha256  # type: ignore[import-not-found]

PACKAGES = ("runtime", "shim")  # what a warden loads


def code_version(code: str) -> str:
    """A name for the packages in the directory `code` and this interpreter: their place and all that is in them.

    A warden serves launchers of its own only. OSError.
    """
    digest = sha256(f"{code}\0{sys.version}\0".encode())
    for package in PACKAGES:
        for path in sorted(_sources(f"{code}/{package}")):
            digest.update(os.fsencode(path[len(code) :]) + b"\0")
            digest.update(sha256(read_whole(path)).digest())
    return str(digest.hexdigest()[:16])


def _sources(directory: str) -> list[str]:
    found = []
    for entry in os.scandir(directory):
        if entry.is_dir():
            found += _sources(entry.path)
        elif entry.name.endswith(".py"):
            found.append(entry.path)
    return found
