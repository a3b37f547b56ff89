"""create, done by a process of its own: `manor:[0:CREATE]`, a fork of the caller that ends when init stands.

Reading a config and planning from it touches most of the runtime's pages and leaves garbage: some 2 MB
that a shim would have to itself, and keep for as long as its pod lives. Here a child pays, and is gone
before the container is started. What else can take long or go wrong with foreign data (a mount, a hostile
config of 10 MiB) happens in it as well and can neither stop nor bloat the caller. Init is cloned as the
caller's child (CLONE_PARENT), so that the caller reaps it.

    caller                          0:CREATE                             2:INIT
      │ clone ─────────────────────────►│ read, mount, plan                 │
      │                                 │ clone, CLONE_PARENT ─────────────►│
      │                                 │ ◄───────────────── … Ready ───────│ (as in runtime.stages)
      │ ◄─ Created, with the gate's fd ─│ exit 0                            │
      │ ─ Start ───────────────────────────────────────────────────────────►│
"""

from __future__ import annotations

import _signal
import os

from runtime import state, terms
from runtime.bundle import read_config
from runtime.cgroups.cgroup import reopen
from runtime.container import Container, CreateOptions, CreateRequest
from runtime.errors import ConfigError, ManorError, StageError
from runtime.linux.fds import OwnedFd, close_all
from runtime.operations.create import create
from runtime.operations.delete import delete, remove_cgroup
from runtime.operations.load import cgroup_asked_for
from runtime.operations.process_plan import complete
from runtime.record import Record
from runtime.spec.json import dump, parse
from runtime.spec.load import load_spec
from runtime.stages.channel import Channel, ChannelClosed, channel_pair
from runtime.stages.clone import clone_stage, end_with
from runtime.stages.messages import Created
from runtime.stages.stage0_parent import Launched
from runtime.trace import Timeline
from runtime.waiting import Claim, Exit, run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runtime.container import Host
    from runtime.spec.model import Spec
    from runtime.stages.clone import Step
    from runtime.stages.plan import Stdio
    from runtime.waiting import Operation

CREATOR = "0:CREATE"
CREATE_TIMEOUT_S = 240.0  # more than all the waits of a create together
_MAX_DESCRIPTION = 64 << 20


class ApartRequest(Record):
    """A container to be made from the config.json in `bundle`.

    `terminal` is what the caller has made `stdio` for. `prepare` is called in the creating process as `CreateRequest`
    has it, and what it has done is the caller's to undo when the create fails. `adapt` changes the config there
    before anything is made of it; `keep` are descriptors for it, such as its paths name ("/proc/self/fd/N").
    """

    id: str
    bundle: str
    stdio: Stdio
    terminal: bool = False
    prepare: Callable[[], None] | None = None
    shape: str = ""
    options: CreateOptions = CreateOptions()
    adapt: Callable[[Spec], Spec] | None = None
    keep: tuple[int, ...] = ()


def create_apart(host: Host, request: ApartRequest) -> Operation[Container]:
    """`create` for the bundle of `request`, with the same errors and the same result.

    The caller reaps: the creating process may still be there as an ended child when this returns. A loop that
    drives it keeps all exits until then (a reaper's hold), not just the claimed ones.
    """
    state.check_id(request.id)
    stdio, null = complete(request.stdio)
    try:
        creator, pidfd, near = _clone_creator(host, request, stdio)
    finally:
        if null is not None:
            null.close()
    try:
        message, fds = yield from near.received((Created,), CREATE_TIMEOUT_S)
    except BaseException as failure:
        yield from _give_up(host, request, creator, pidfd, failure)
        raise
    finally:
        near.close()
    yield Claim(message.pid)
    pidfd.close()
    # The creating process has nothing more to say, and its end takes a millisecond: it is the reaper's.
    return _adopt(host, request, message, fds)


def _clone_creator(host: Host, request: ApartRequest, stdio: Stdio) -> tuple[int, OwnedFd, Channel]:
    near, far = channel_pair("main", CREATOR)
    caller = os.getpid()
    keep = (stdio.stdin, stdio.stdout, stdio.stderr, host.procfs.fileno(), *request.keep)
    try:
        pid, pidfd = clone_stage(
            CREATOR, lambda step: _be_creator(step, host, request, stdio, far, caller), far, keep
        )
    except OSError as error:
        near.close()
        raise StageError("main", "clone", CREATOR, os.strerror(error.errno or 0), error.errno or 0) from error
    finally:
        far.close()
    return pid, OwnedFd(pidfd), near


def _give_up(
    host: Host, request: ApartRequest, creator: int, pidfd: OwnedFd, failure: BaseException
) -> Operation[None]:
    """After a create that failed: it has cleaned up behind itself, unless it was itself ended."""
    try:
        _signal.pidfd_send_signal(pidfd.fileno(), _signal.SIGKILL)
    except ProcessLookupError:
        pass
    pidfd.close()
    if isinstance(failure, GeneratorExit):
        return  # nobody drives us any more
    yield Exit(creator)
    if isinstance(failure, (ChannelClosed, TimeoutError)):
        # Init, if there was one, has seen the end of its start gate.
        yield from _clean_up(host, request)


def _clean_up(host: Host, request: ApartRequest) -> Operation[None]:
    """Remove what a create left that could not do it itself: it was killed, or stuck.

    Its directory is made before its cgroup: without one, a cgroup of that path is somebody else's. And so is one
    that somebody is in before it was noted that it has been made.
    """
    if not os.path.isdir(f"{host.root}/{request.id}"):
        return
    try:
        spec = load_spec(read_config(request.bundle))
        cgroup = cgroup_asked_for(host, spec.linux.cgroups_path or "", request.id)
        if state.has_cgroup(host.root, request.id) or not cgroup.holders(1):
            yield from remove_cgroup(cgroup)
    except ManorError:
        pass  # the create's own failure is the one to tell
    state.remove_directory(host.root, request.id)


# ---- in the creating process ---------------------------------------------------------------------


def _be_creator(
    step: Step, host: Host, request: ApartRequest, stdio: Stdio, main: Channel, caller: int
) -> None:
    end_with(caller)  # or it would go on making what nobody knows of
    step.begin("create container", request.id)
    try:
        container = _create(host, request, stdio)
    except StageError:
        raise
    except ManorError as error:
        # It says all by itself: let it arrive as it is, with its kind.
        raise StageError("", "", "", str(error), 0, error.kind) from error
    try:
        _hand_over(container, main)
    except BaseException:
        run(delete(container))  # nobody will ever hear of it
        raise


def _hand_over(container: Container, main: Channel) -> None:
    gate = container.start_gate
    assert gate is not None
    named = {
        "gate": gate.channel.fileno(),
        "pid": container.pidfd.fileno(),
        "console": None if container.console is None else container.console.fileno(),
    }
    given = {name: fd for name, fd in named.items() if fd is not None}
    with OwnedFd(os.memfd_create("created", os.MFD_CLOEXEC)) as description:
        os.write(description.fileno(), dump(_describe(container)))
        fds = (description.fileno(), *given.values())
        main.send(Created(container.pid, " ".join(("description", *given))), fds)


def _create(host: Host, request: ApartRequest, stdio: Stdio) -> Container:
    timeline = Timeline()
    timeline.mark("clone creator")
    spec = load_spec(read_config(request.bundle))
    if request.adapt is not None:
        spec = request.adapt(spec)
    timeline.mark("read config")
    if spec.process.terminal != request.terminal:
        raise ConfigError(
            "process.terminal", f"must be {str(request.terminal).lower()}, as the caller has it"
        )
    asked = CreateRequest(
        request.id, request.bundle, spec, stdio, request.shape, True, request.options, request.prepare
    )
    return run(create(host, asked, timeline))


def _describe(container: Container) -> dict[str, Any]:
    """What the caller cannot know yet, as JSON can hold it."""
    return {
        "start_time": container.start_time,
        "created": container.created,
        "cgroup": container.cgroup.describe(),
        "warnings": container.warnings,
        "marks": container.marks,
        "terms": terms.to_json(container.terms),
    }


# ---- in the caller -------------------------------------------------------------------------------


def _adopt(host: Host, request: ApartRequest, message: Created, fds: list[OwnedFd]) -> Container:
    """The container that another process has made for us."""
    named = dict(zip(message.fds.split(), fds, strict=True))
    with named.pop("description") as description:
        said = parse(os.pread(description.fileno(), _MAX_DESCRIPTION, 0))
    launched = Launched(message.pid, named.pop("pid"), Channel(named.pop("gate"), "2:INIT"))
    launched.console = named.pop("console", None)
    close_all(named.values())
    launched.warnings = tuple(said["warnings"])
    cgroup = reopen(host.layout, said["cgroup"], host.systemd)
    container = Container(host, request.id, request.bundle, launched, cgroup, terms.from_json(said["terms"]))
    container.start_time, container.created = said["start_time"], said["created"]
    container.marks = tuple([(step, when) for step, when in said["marks"]])
    container.become(state.CREATED)
    return container
