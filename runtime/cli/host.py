"""The machine as the command line's verbs see it, and the containers below its root."""

from __future__ import annotations

import os
import stat

from runtime.cgroups.layout import detect_layout
from runtime.cli.settings import is_rootless
from runtime.cli.verbs import late
from runtime.container import open_host
from runtime.errors import InvalidArgument, Unsupported
from runtime.operations.load import load
from runtime.operations.load import lock as lock_container
from runtime.stages.clone import spawn_placeholder
from runtime.waiting import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cgroups.systemd import Systemd
    from runtime.cli.arguments import Call, Globals
    from runtime.container import Container, Host
    from runtime.linux.fds import OwnedFd

FILTERS = "@seccomp"  # compiled ones, below the root; no container id has an @


def host(settings: Globals) -> Host:
    """A Host for the root directory of `settings`; it stays open for the life of the process.

    InvalidArgument for a root that others may write to: what is in there names programs for us to run.
    """
    _check_root(settings.root)
    return open_host(
        settings.root,
        f"{settings.root}/{FILTERS}",
        detect_layout(),
        True if settings.systemd_cgroup else None,  # else the form of the config's cgroupsPath tells
        lambda: _systemd(settings),
        is_rootless(settings),
    )


def _check_root(path: str) -> None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return  # it is made with a mode of our own
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InvalidArgument(f"--root {path}: others than us may write to it")


def container(call: Call) -> Container:
    """The container that the first argument of `call` names. NotFound, InvalidId, InvalidState."""
    return load(host(call.globals), call.arguments[0])


def sole(call: Call) -> tuple[OwnedFd, Container]:
    """The same for a verb that changes it: nobody else does as long as the descriptor, a lock, is open."""
    machine = host(call.globals)
    lock = run(lock_container(machine, call.arguments[0]))
    try:
        return lock, load(machine, call.arguments[0])
    except BaseException:
        lock.close()
        raise


def _systemd(settings: Globals) -> Systemd:
    """The way to systemd, loaded for who needs it: it brings a library of D-Bus with it. Unsupported without that."""
    try:
        module = late("runtime.cgroups.systemd")
    except ImportError as error:  # a node may have our packages alone
        raise Unsupported("the systemd cgroup driver needs the Python package jeepney") from error
    made: Systemd = module.Systemd(spawn_placeholder, is_rootless(settings))
    return made
