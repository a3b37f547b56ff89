"""The way to systemd, for containers whose cgroups are its units: there where a warden has loaded it.

It takes a library of D-Bus, which a shim of a node without systemd does without. So the warden loads it before it
forks, on a node that was booted with systemd (`load`), and a shim only looks whether it is there.
"""

from __future__ import annotations

import sys

from runtime.cgroups.driver import booted_with_systemd
from runtime.errors import Unsupported
from runtime.stages.clone import spawn_placeholder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cgroups.systemd import Systemd

_MODULE = "runtime.cgroups.systemd"
_LIBRARY = "jeepney"


def load(libraries: str) -> None:
    """Load what talks to systemd, if that is PID 1, with the library for it from the directory `libraries`.

    A node may be without: then only those containers fail that ask for systemd.
    """
    if not booted_with_systemd():
        return
    sys.path.append(libraries)
    try:
        __import__(_MODULE)
    except ImportError:
        pass
    finally:
        sys.path.remove(libraries)


def available() -> bool:
    """Whether containers can have units of systemd as their cgroups here."""
    return _MODULE in sys.modules


def manager() -> Systemd:
    """The system's service manager. Unsupported, with the reason, where there is no way to it."""
    module = sys.modules.get(_MODULE)
    if module is None:
        why = f"the Python package {_LIBRARY} is missing"
        if not booted_with_systemd():
            why = "this machine was not booted with systemd"
        raise Unsupported(f"the systemd cgroup driver is not available: {why}")
    made: Systemd = module.Systemd(spawn_placeholder)
    return made
