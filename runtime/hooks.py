"""Hooks: programs that config.json wants run at moments of a container's life, with its state on their stdin.

`run` is an operation, so that a slow hook delays its container and nobody else. Forking is the caller's:
only he knows which namespaces a hook must see. Which moment comes when is the stages' business.
"""

from __future__ import annotations

import _signal
import os
import select
import time

from runtime.errors import ManorError, describe
from runtime.linux.fds import OwnedFd, pipe
from runtime.spec.model import Hook
from runtime.waiting import Claim, Exit, Readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.waiting import Operation

    # Clone a child that keeps these descriptors alone and does this, which never returns: (pid, pidfd).
    Spawn = Callable[[Callable[[], None], tuple[int, ...]], tuple[int, int]]

MOMENTS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")

_MOST_OUTPUT = 16 * 1024  # of what a hook says, the end is kept


class HookError(ManorError):
    """A hook failed; says which, how, and what it printed."""


def run(
    moment: str,
    hooks: tuple[Hook, ...],
    state: bytes,
    spawn: Spawn,
    default_env: tuple[str, ...] = (),
    directory: str = "",
) -> Operation[None]:
    """Run `hooks` one after the other, with `state` (JSON) as their input; HookError for the first that fails.

    A hook without an environment of its own gets `default_env`. They begin in `directory`, "" for where we are. With
    runc, whose hooks rely on it: our own environment and the bundle for those of the runtime's namespaces, none and
    the root file system for createContainer, those of the process for startContainer.
    """
    for index, hook in enumerate(hooks):
        failure = yield from _run_one(moment, hook, state, spawn, default_env, directory)
        if failure:
            raise HookError(f"error running {moment} hook #{index}: {hook.path}: {failure}")


def run_all(
    moment: str,
    hooks: tuple[Hook, ...],
    state: bytes,
    spawn: Spawn,
    default_env: tuple[str, ...] = (),
    directory: str = "",
) -> Operation[tuple[str, ...]]:
    """Run all of `hooks` even if some fail, as poststop has it (runtime.md, "Lifecycle"); a warning for each."""
    warnings = []
    for index, hook in enumerate(hooks):
        failure = yield from _run_one(moment, hook, state, spawn, default_env, directory)
        if failure:
            warnings.append(f"error running {moment} hook #{index}: {hook.path}: {failure}")
    return tuple(warnings)


def run_tool(arguments: tuple[str, ...], spawn: Spawn, timeout_s: int) -> Operation[str]:
    """Run a program of the host's that is no hook, the same way: what went wrong and what it said, "" if nothing did.

    It gets no input and no environment; `arguments` begin with its absolute path.
    """
    tool = Hook(arguments[0], arguments, (), timeout_s)
    return (yield from _run_one("", tool, b"", spawn, (), "/"))


def _run_one(
    moment: str, hook: Hook, state: bytes, spawn: Spawn, default_env: tuple[str, ...], directory: str
) -> Operation[str]:
    """Run `hook` to its end; what went wrong, "" if nothing did."""
    # A file, not a pipe, as its input: nobody has to wait for a hook that does not read.
    state_file = OwnedFd(os.memfd_create("hook-state", os.MFD_CLOEXEC))
    reader, writer = pipe()
    with state_file, reader:
        with writer:
            os.write(state_file.fileno(), state)
            os.lseek(state_file.fileno(), 0, os.SEEK_SET)
            program = _arguments(hook, default_env)
            fds = (state_file.fileno(), writer.fileno())
            # Under the container's seccomp filter it makes no call that a profile need not allow.
            alone = moment != "startContainer"
            try:
                pid, pidfd = spawn(lambda: _become(program, fds, directory, alone), fds)
            except OSError as error:
                return f"clone: {describe(error)}"
        with OwnedFd(pidfd) as child:
            yield Claim(pid)
            return (yield from _await(hook, pid, child, reader))


def _await(hook: Hook, pid: int, child: OwnedFd, reader: OwnedFd) -> Operation[str]:
    output = bytearray()
    try:
        ended = yield from _collect(hook.timeout, child, reader, output)
    except BaseException:
        _kill(pid, child)  # nobody waits for it any more
        raise
    if not ended:
        _kill(pid, child)
    status = yield Exit(pid)
    if not ended:
        return f"hook ran past specified timeout of {hook.timeout:.1f}s{_said(output)}"
    return _describe(status, output)


def _collect(timeout_s: int | None, child: OwnedFd, reader: OwnedFd, output: bytearray) -> Operation[bool]:
    """Read what the hook says until it has ended; False if it has not within `timeout_s`.

    Its end counts, not that of its output: a daemon that it started may keep that open for ever.
    """
    os.set_blocking(reader.fileno(), False)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with select.epoll() as either:  # an epoll is readable itself when one of its descriptors is
        either.register(child.fileno(), select.EPOLLIN)
        either.register(reader.fileno(), select.EPOLLIN)
        while True:
            left_s = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            try:
                yield Readable(either.fileno(), left_s)
            except TimeoutError:
                return False
            ready = [fd for fd, _events in either.poll(0)]
            if not _drain(reader, output) and reader.fileno() in ready:
                either.unregister(reader.fileno())
            if child.fileno() in ready:
                return True


def _drain(reader: OwnedFd, output: bytearray) -> bool:
    """Take what is there, once around the pipe's size; False at the end of the output."""
    for _ in range(16):
        try:
            data = os.read(reader.fileno(), 4096)
        except BlockingIOError:
            return True
        if not data:
            return False
        output += data
        del output[:-_MOST_OUTPUT]
    return True


def _kill(pid: int, child: OwnedFd) -> None:
    """Kill a hook and what it has started, unless that has made itself independent."""
    try:
        _signal.pidfd_send_signal(child.fileno(), _signal.SIGKILL)
    except ProcessLookupError:
        return  # it has ended and been waited for: its pid may be another's
    try:
        os.killpg(pid, _signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # it leads no group (yet): it has started nothing


def _describe(status: int, output: bytearray) -> str:
    if status == 0:
        return ""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        text = _signal.strsignal(number) or "unknown"
        return f"killed by signal {number}: {text[:1].lower()}{text[1:]}{_said(output)}"
    return f"exit status {os.WEXITSTATUS(status)}{_said(output)}"


def _said(output: bytearray) -> str:
    text = output.decode("utf-8", "replace").strip()
    return f", output: {text}" if text else ""


# ---- in the child ------------------------------------------------------------------------------


def _arguments(hook: Hook, default_env: tuple[str, ...]) -> tuple[bytes, list[bytes], dict[bytes, bytes]]:
    env: dict[bytes, bytes] = {}
    for entry in hook.env or default_env:
        name, _, value = entry.encode("utf-8", "surrogateescape").partition(b"=")
        if name:
            env[name] = value
    args = [argument.encode("utf-8", "surrogateescape") for argument in hook.args or (hook.path,)]
    return hook.path.encode("utf-8", "surrogateescape"), args, env


def _become(
    program: tuple[bytes, list[bytes], dict[bytes, bytes]], fds: tuple[int, int], directory: str, alone: bool
) -> None:
    state, output = fds
    os.dup2(state, 0, inheritable=True)
    os.dup2(output, 1, inheritable=True)
    os.dup2(output, 2, inheritable=True)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    try:
        if alone:
            os.setsid()  # so that all it starts can be killed with it
        if directory:
            os.chdir(directory)
        os.execve(*program)
    except OSError as error:
        os.write(2, os.strerror(error.errno or 0).encode())
    os._exit(127)
