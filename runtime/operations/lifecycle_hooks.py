"""The hooks of a container at the moments of its life (runtime.md, "Lifecycle"), each with what it is told."""

from __future__ import annotations

import os

from runtime import hooks, state
from runtime.payload import own_home, prepare_environment
from runtime.record import replace
from runtime.spec.json import dump
from runtime.spec.model import Hooks
from runtime.stages.clone import spawn_hook
from runtime.waiting import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runtime.container import Container, CreateRequest, Terms
    from runtime.spec.model import Spec
    from runtime.waiting import Operation


def hooks_to_keep(spec: Spec) -> Hooks | None:
    """Those of `spec` that are still to be run when it stands at the start gate; None for none."""
    asked = spec.hooks
    if asked is None:
        return None
    kept = replace(asked, prestart=(), create_runtime=(), create_container=())
    return None if kept == Hooks() else kept


def environment() -> tuple[str, ...]:
    """Our own, which a hook of the runtime's namespaces has if it names none."""
    return tuple([f"{name}={value}" for name, value in os.environ.items()])


def programs_environment(env: tuple[str, ...]) -> tuple[str, ...]:
    """The one that the container's program will have, as `env` entries."""
    return tuple(
        [os.fsdecode(name + b"=" + value) for name, value in prepare_environment(env, own_home).items()]
    )


def host_hooks(request: CreateRequest) -> Callable[[int], Operation[None]] | None:
    """prestart and createRuntime: on the host, while the mounts stand and the root is still the host's."""
    asked = request.spec.hooks
    if asked is None or not (asked.prestart or asked.create_runtime):
        return None

    def run_them(pid: int) -> Operation[None]:
        said = dump(_state_of(request, state.CREATING, pid))
        around = spawn_hook, environment(), request.bundle
        yield from hooks.run("prestart", asked.prestart, said, *around)
        yield from hooks.run("createRuntime", asked.create_runtime, said, *around)

    return run_them


def container_hooks(request: CreateRequest, moment: str, status: str) -> Callable[[], None] | None:
    """createContainer or startContainer: run by init, as its children. They are told the pid that it has inside.

    As with runc, the first begin in the root file system and with no environment, the others as the process will.
    """
    asked = request.spec.hooks
    if asked is None:
        return None
    listed = asked.create_container if moment == "createContainer" else asked.start_container
    if not listed:
        return None
    rootfs = os.path.join(request.bundle, request.spec.root.path)

    def run_them() -> None:
        said = dump(_state_of(request, status, os.getpid()))
        if moment == "createContainer":
            run(hooks.run(moment, listed, said, spawn_hook, (), rootfs))
        else:
            run(hooks.run(moment, listed, said, spawn_hook, programs_environment(request.spec.process.env)))

    return run_them


def _state_of(request: CreateRequest, status: str, pid: int) -> dict[str, Any]:
    spec = request.spec
    return state.shown(spec.oci_version, request.id, status, pid, request.bundle, spec.annotations)


def run_poststart(container: Container) -> Operation[None]:
    """HookError for the first that fails (runtime.md, "Lifecycle", 9: the container is then to be stopped)."""
    asked = container.terms.hooks
    if asked is not None and asked.poststart:
        said = _told(container, state.RUNNING)
        yield from hooks.run("poststart", asked.poststart, said, spawn_hook, environment(), container.bundle)


def run_poststop(container: Container) -> Operation[tuple[str, ...]]:
    """All of them, whatever fails; a warning for each that did."""
    asked = container.terms.hooks
    if asked is None or not asked.poststop:
        return ()
    said = _told(container, state.STOPPED)
    return (
        yield from hooks.run_all(
            "poststop", asked.poststop, said, spawn_hook, environment(), container.bundle
        )
    )


def _told(container: Container, status: str) -> bytes:
    said: Terms = container.terms
    return dump(
        state.shown(said.oci_version, container.id, status, container.pid, container.bundle, said.annotations)
    )
