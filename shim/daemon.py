"""A forked process becoming what its launcher asked for: a shim that serves a pod, or an answer and the end.

Everything is put together here and nothing is decided: `bootstrap` finds the socket, `server` and
`task_service` serve it, `delete` and `info` answer the actions that start nothing.
"""

from __future__ import annotations

import _signal
import os
import time

from runtime.cgroups.cgroup import open_cgroup
from runtime.cgroups.layout import detect_layout
from runtime.container import open_host
from runtime.errors import InvalidArgument, ManorError, describe
from runtime.linux.fds import OwnedFd
from runtime.linux.procstat import start_time
from runtime.waiting import Sleep
from shim import bootstrap, deed, info, sockets, spans, systemd
from shim.api import logs, ps, sandbox, streaming, task
from shim.api.codec import encode
from shim.api.types import timestamp
from shim.bootstrap import Invocation, parse_arguments, pod_name, read_bootstrap
from shim.deed import Deed
from shim.delete import Remains, bury_stillborn, container_ids, killed
from shim.events import Publisher
from shim.exits import Reaper
from shim.journal import Journal
from shim.log import DEBUG, ERROR, WARNING, Log
from shim.log_service import LogService
from shim.loop import Loop
from shim.options import read_handler, unheeded
from shim.pod import Pod
from shim.ps_service import PsService
from shim.sandbox_service import SandboxService
from shim.server import Server
from shim.task_service import TaskService
from shim.tasks import spawn, within
from shim.version import RUNTIME_NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn

    from runtime.cgroups.layout import Layout
    from runtime.container import Host
    from shim.bootstrap import Bootstrap
    from shim.open_calls import Method
    from shim.options import Handler
    from shim.start_request import StartRequest
    from shim.streams import StreamMethod
    from shim.tasks import Steps

RUN_DIR = "/run/manor"
PODS = "pods"  # in it: a directory for each pod
# How long a shim that is told to end waits for containerd to take its last events.
FAREWELL_S = 2.0
# How long it waits for whoever asked for its end to hang up: a client in Go that sees an answer and the end of the
# connection at once may take either, and containerd fails to remove a pod by the latter.
PARTING_S = 1.0
# How long `delete` waits for the end of a dead shim and of what it had begun: containerd waits five seconds for it.
PARTED_S = 3.0
# How long one with nothing in it waits for a call that it has an answer to: containerd may be killed before it knows of
# its shim, or after it has emptied the pod.
LEFT_S = 60.0
# Spans are for later reading; what is going on comes first.
SPANS_DELAY_S = 0.02


def run(request: StartRequest) -> NoReturn:
    """Do what the command line says and never return. What goes wrong before the answer is raised."""
    invocation = parse_arguments(request.argv)
    if invocation.show_version:
        _answer(request, info.version_text())
    elif invocation.show_info:
        request.stdin.close()
        _answer(request, info.runtime_info(request.origin))
    elif invocation.action == "delete":
        _delete(request, invocation)
    elif invocation.action == "start":
        _start(request, invocation)
    else:
        raise InvalidArgument(f"unknown command {invocation.action!r}: there are start and delete")
    os._exit(0)


def bury(state_dir: str) -> None:
    """Somebody has died: remove what nobody else will. `state_dir` is the run directory of all pods. OSError."""
    bury_stillborn(f"{state_dir}/{PODS}")


def _answer(request: StartRequest, stdout: bytes, stderr: bytes = b"") -> None:
    request.reply.send(0, stdout, stderr)


def run_dir(environ: Mapping[str, str]) -> str:
    """Where Manor keeps its state."""
    return environ.get("MANOR_RUN_DIR", RUN_DIR)


def pod_directory(environ: Mapping[str, str], name: str) -> str:
    """Where a pod's containers have their state."""
    return f"{run_dir(environ)}/{PODS}/{name}"


def _check_run_dir(request: StartRequest) -> None:
    """SocketError for one that others may write to, and so put a pod's state there that is not ours.

    A launcher that has reached a warden has looked already.
    """
    if request.origin.alone_because:
        sockets.make_directory(run_dir(request.environ))


# --- delete ----------------------------------------------------------------------------------------


def _delete(request: StartRequest, invocation: Invocation) -> None:
    """Clean up unless the pod's shim is alive, and answer how the container ended: it was killed, if nobody knows."""
    if not invocation.namespace or not invocation.id:
        raise InvalidArgument("delete: -namespace and -id are needed")
    _check_run_dir(request)
    bundle = _path_of(request.cwd_fd)
    group = bootstrap.group_of(request.cwd_fd.fileno(), invocation.id)
    name = pod_name(invocation.address, invocation.namespace, group)
    directory = pod_directory(request.environ, name)
    socket_path = sockets.recorded_socket(directory) or f"{bootstrap.SOCKET_DIR}/{name}"
    remains = Remains(directory, request.layout or detect_layout())
    alive, taken = sockets.is_served(socket_path), None
    if not alive:
        try:
            taken = deed.take(directory, PARTED_S)
        except TimeoutError as error:
            alive = sockets.is_served(socket_path)  # the next one, by now
            remains.warnings.append(describe(error))
    if alive:
        ended = remains.known_exit(invocation.id, bundle) or killed(invocation.id)
    else:
        with taken or OwnedFd(-1):
            ended = remains.remove_all(invocation.id, bundle)
            sockets.remove_socket(socket_path)
    answer = task.DeleteResponse(ended.pid, ended.code, timestamp(ended.exited_at))
    _answer(
        request,
        encode(answer),
        "".join(f"{warning}\n" for warning in remains.warnings).encode(errors="replace"),
    )


def _path_of(directory: OwnedFd) -> str:
    return os.readlink(f"/proc/self/fd/{directory.fileno()}")


# --- start -----------------------------------------------------------------------------------------


def _start(request: StartRequest, invocation: Invocation) -> None:
    """Answer with the address of the pod's shim, and be that shim if there is none."""
    wanted = read_bootstrap(invocation, request.environ, request.stdin.read())
    handler = read_handler(wanted.options)
    _check_run_dir(request)
    group = bootstrap.group_of(request.cwd_fd.fileno(), wanted.id)
    name = pod_name(wanted.grpc_address, wanted.namespace, group)
    path = f"{wanted.socket_dir}/{name}"
    address = f"unix://{path}"
    directory = pod_directory(request.environ, name)
    if handler.options.root:
        sockets.place_pod(directory, handler.options.root)
    layout = request.layout or detect_layout()
    held, listener = _take_up(directory, path, _deed(wanted, path, _path_of(request.cwd_fd)), layout)
    try:
        if listener is not None:
            _join_shim_cgroup(handler.options.shim_cgroup, layout)
        bootstrap.write_address(request.cwd_fd.fileno(), address)
        _answer(request, bootstrap.encode_answer(wanted, address))
    except BaseException:
        if listener is not None:
            sockets.remove_socket(path)
        deed.give_up(directory, held)
        raise
    if listener is None:
        held.close()
        return
    log = Log(f"{_path_of(request.cwd_fd)}/log", RUNTIME_NAME, wanted.debug)
    request.cwd_fd.close()
    filters = f"{run_dir(request.environ)}/seccomp"
    host = open_host(directory, filters, layout, systemd=systemd.manager)
    traced = spans.enabled(request.environ)
    for line in (*request.origin.notes(), *unheeded(handler.options)):
        log.write(WARNING, line)
    Shim(listener, path, wanted, host, log, run_dir(request.environ), traced, handler).serve(held)


class _NotCleared(ManorError):
    """A shim of this pod has died, and nobody has cleaned up after it yet."""


def _take_up(directory: str, path: str, claimed: Deed, layout: Layout) -> tuple[OwnedFd, OwnedFd | None]:
    """The pod's directory, held, and its socket, listening; None for that where a shim has it already.

    What a dead one has left goes first: once there is one that answers, no `delete` would touch it.
    """
    cleared = False
    while True:
        held = deed.hold(directory)
        try:
            return held, _listen(directory, path, held, claimed, cleared)
        except _NotCleared:
            held.close()
        except BaseException:
            deed.give_up(directory, held)
            raise
        try:
            taken = deed.take(directory, PARTED_S)
        except TimeoutError:
            taken = None  # the next shim has it by now
        if taken is not None:
            with taken:
                Remains(directory, layout).clear()
        cleared = True


def _listen(directory: str, path: str, held: OwnedFd, claimed: Deed, cleared: bool) -> OwnedFd | None:
    def claim() -> None:
        if not cleared and container_ids(directory):
            raise _NotCleared(directory)
        deed.write(held, claimed)
        sockets.record_socket(directory, path)

    return sockets.listen(path, claim)


def _deed(wanted: Bootstrap, path: str, bundle: str) -> Deed:
    pid = os.getpid()
    return Deed(
        pid,
        start_time(pid),
        wanted.namespace,
        wanted.id,
        path,
        bundle,
        wanted.grpc_address,
        time.time_ns(),
    )


def _join_shim_cgroup(path: str, layout: Layout) -> None:
    """Move this process where the handler's options want the shim, if they do, in each hierarchy that has that cgroup.

    Who made it need not have made it in all: a client that knows version 1 makes none in the unified hierarchy.
    """
    if not path:
        return
    cgroup = open_cgroup(layout, path)
    there = [each for each in layout.hierarchies if os.path.isdir(cgroup.paths[each.name])]
    if there:
        cgroup.keep(there)
    try:
        with cgroup.open_join() as join:
            join.enter_v1()
            if join.v2_dir is not None:
                procs = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=join.v2_dir.fileno())
                with OwnedFd(procs):
                    os.write(procs, b"0")
    except OSError as error:
        raise InvalidArgument(f"runtime options: ShimCgroup {path!r}: join {describe(error)}") from error


def end_when_left(server: Server, pod: Pod, end: Callable[[], None]) -> Steps[None]:
    """`end`, once the pod was empty for LEFT_S and nobody got an answer: nobody knows of us, or wants us any more.

    Who is connected need not: containerd 1.6, killed between the Delete of a pod's last task and its Shutdown, finds
    the shim again when it starts, keeps it, and asks it for the task that is not there, if for anything.
    """
    while True:
        yield pod.emptied()
        answered = server.answered
        yield Sleep(LEFT_S)
        if (
            server.answered == answered
            and not server.open_calls.others
            and not len(pod)
            and pod.sandbox is None
        ):
            end()
            return


class Shim:
    """One pod's shim, from its listening socket to its end."""

    def __init__(
        self,
        listener: OwnedFd,
        path: str,
        wanted: Bootstrap,
        host: Host,
        log: Log,
        state_dir: str,
        traced: bool,
        handler: Handler,
    ) -> None:
        self._path = path
        self._held = OwnedFd(-1)
        self._log = log
        self._loop = Loop()
        self._loop.on_failure = log.bug
        self._spans = spans.Spans(state_dir, self._when_quiet, traced)
        reaper = Reaper(self._loop)
        journal = Journal(host.root, log)
        self._events = Publisher(
            self._loop,
            wanted.ttrpc_address,
            wanted.namespace,
            log,
            lambda: reaper.holding,
            journal.sync,
            host.root,
        )
        self._pod = Pod(self._loop, reaper, self._events, host, log, self._spans.emit, self.shutdown, journal)
        self._pod.handler = handler
        self._pod.namespace = wanted.namespace
        methods = TaskService(self._pod).methods()
        services: dict[str, Mapping[str, Method | StreamMethod]] = {
            task.SERVICE_V2: methods,
            task.SERVICE_V3: methods,
            logs.SERVICE: LogService(self._pod).methods(),
            ps.SERVICE: PsService(self._pod).methods(),
            sandbox.SERVICE: SandboxService(self._pod).methods(),
            streaming.SERVICE: self._pod.exchange.methods(),
        }
        self._server = Server(self._loop, listener, services, log)
        self._ending = False
        spawn(self._loop, end_when_left(self._server, self._pod, self.shutdown))
        for number in (_signal.SIGTERM, _signal.SIGINT):
            self._loop.on_signal(number, self.shutdown)

    def _when_quiet(self, call: Callable[[], None]) -> None:
        self._loop.call_later(SPANS_DELAY_S, call)

    def serve(self, held: OwnedFd) -> NoReturn:
        """Serve until told to end, and hold the pod's directory by its lock `held` until then."""
        self._held = held
        self._pod.keep = (held.fileno(),)
        try:
            self._loop.run()
        except BaseException as error:
            self._log.bug(error)
            os._exit(1)
        os._exit(0)

    def shutdown(self) -> None:
        """End soon: no new callers, the last events, and out. What still runs is left to run."""
        if not self._ending:
            self._ending = True
            self._loop.call_soon(self._begin_end)

    def _begin_end(self) -> None:
        sockets.remove_socket(self._path)
        spawn(self._loop, self._end())

    def _end(self) -> Steps[None]:
        if not (yield from within(self._loop, self._events.sent(), FAREWELL_S)):
            self._log.write(ERROR, "the last events were not taken in time")
        yield from within(self._loop, self._server.deserted(), PARTING_S)
        self._server.close()
        self._events.close()
        self._spans.close()
        deed.give_up(self._pod.host.root, self._held)
        self._log.write(DEBUG, "shim ended")
        self._loop.stop()
