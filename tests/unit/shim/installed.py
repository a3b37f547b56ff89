"""A launcher of a test's own, with a daemon that answers for the test: real processes, no root and no containerd."""

from __future__ import annotations

import functools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from shim import install

CHECKOUT = Path(__file__).resolve().parents[3]

# What answers instead of shim.daemon; its first argument says what to do.
DAEMON = '''
import _signal, ctypes, os, resource, sys, time

def run(request):
    if request.argv[1] not in ("stdin", "crash-with-stdin"):
        request.stdin.close()
    request.cwd_fd.close()
    ANSWERS[request.argv[1]](request)
    os._exit(0)

def say(request):
    """Everything that a shim can know of itself, for the test to look at."""
    status = open("/proc/self/status").read()
    facts = {
        "argv": request.argv, "environ": request.environ, "os.environ": dict(os.environ),
        "alone_because": request.origin.alone_because, "seal": str(request.origin.seal),
        "pid": os.getpid(), "parent": os.getppid(), "session": os.getsid(0), "cwd": os.getcwd(),
        "fds": {fd: link(fd) for fd in os.listdir("/proc/self/fd")},
        "limits": [resource.prlimit(0, number) for number in range(16)],
        "cpus": sorted(os.sched_getaffinity(0)), "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "oom_score": int(open("/proc/self/oom_score_adj").read()),
        "umask": [line.split()[1] for line in status.splitlines() if line.startswith("Umask")][0],
        "signals": [line.split() for line in status.splitlines() if line.startswith(("SigBlk", "SigCgt"))],
        "wakeup_fd": _signal.set_wakeup_fd(-1),
        "cgroup": open("/proc/self/cgroup").read(), "modules": sorted(sys.modules),
        "anonymous_kb": anonymous(), "kept_apart": kept_apart(),
    }
    request.reply.send(0, repr(facts).encode())

def anonymous():
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith("Anonymous:"):
            return int(line.split()[1])

def kept_apart():
    # What malloc holds of blocks of many sizes that have been freed, in bytes; None without a C library that tells.
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo"):
        return None
    class Info(ctypes.Structure):
        _fields_ = [(name, ctypes.c_int) for name in "abcdefghij"]
    libc.mallinfo.restype, libc.malloc.restype, libc.free.argtypes = Info, ctypes.c_void_p, [ctypes.c_void_p]
    before = libc.mallinfo().h  # uordblks
    for size in range(544, 1024, 16):
        for block in [libc.malloc(size) for _ in range(7)]:
            libc.free(block)
    return libc.mallinfo().h - before

def link(fd):
    try:
        return os.readlink("/proc/self/fd/" + fd)
    except OSError:
        return "gone"

def version(request):
    request.reply.send(0, b"1\\n")

def stdin(request):
    data = request.stdin.read()
    request.reply.send(7, data, b"on stderr")

def start(request):
    request.reply.send(0, b"unix:///address")
    _signal.pause()

def crash(request):
    raise RuntimeError("cannot do that")

def die(request):
    if request.argv[-1] == "delete":
        with open(request.argv[2], "x"):
            request.reply.send(0, b"what a delete says")
    os._exit(9)

def slow(request):
    open(request.argv[2] + "-begun", "w").close()
    time.sleep(0.5)
    try:
        request.reply.send(0, b"late")
    except BaseException as error:
        with open(request.argv[2], "w") as file:
            file.write(type(error).__name__)

ANSWERS = {"say": say, "-v": version, "stdin": stdin, "start": start, "crash": crash, "die": die, "slow": slow}
'''


class Manor:
    """One installed launcher with a run directory: what a node is to the tests in here."""

    def __init__(self, directory: Path, code: Path) -> None:
        self.directory = directory
        # Begins the ids of its shims: directories are called the same in a run of the tests beside this one.
        self.name = f"{directory.name}-{secrets.token_hex(4)}"
        self.run_dir = directory / "run"
        self.run_dir.mkdir(mode=0o700)
        _compile_once()
        self.launcher = install.write_launcher(directory, code, daemon="answering")
        self.environ = {"PATH": os.environ["PATH"], "MANOR_RUN_DIR": str(self.run_dir), "MANOR_TRACE": "off"}

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Run the launcher and wait for it."""
        options.setdefault("stdin", subprocess.DEVNULL if "input" not in options else None)
        if "input" in options:
            del options["stdin"]
        options.setdefault("env", self.environ)
        options.setdefault("cwd", self.directory)
        command = [*options.pop("before", []), str(self.launcher), *arguments]
        return subprocess.run(command, capture_output=True, check=False, timeout=60, **options)

    def say(self, *arguments: str, **options: Any) -> dict[str, Any]:
        """What a shim that is started this way says of itself."""
        done = self.run("say", *arguments, **options)
        assert done.returncode == 0, done.stderr.decode()
        facts: dict[str, Any] = eval(done.stdout)
        return facts

    def wardens(self) -> list[int]:
        """The wardens of this run directory, without children that have just been forked."""
        found = self._titled(b"manor-warden\0" + os.fsencode(self.run_dir))
        return [pid for pid in found if parent(pid) not in (0, *found)]

    def shims(self) -> list[int]:
        """The shims that stay after `start`, by their id, which must begin with `name`."""
        return self._titled(b"-id\0" + os.fsencode(self.name))

    def connect(self, client: socket.socket, name: str) -> None:
        """To the socket `name`, by a descriptor of its directory: what tests lie in may be longer than an address."""
        directory = os.open(self.run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            client.connect(f"/proc/self/fd/{directory}/{name}")
        finally:
            os.close(directory)

    def sockets(self) -> list[str]:
        """What lies in the run directory and is no lock."""
        return sorted(path.name for path in self.run_dir.iterdir() if path.suffix != ".lock")

    def start(self) -> int:
        """Have a shim started; its pid."""
        known = self.shims()
        done = self.run("start", "-id", f"{self.name}-{len(known)}")
        assert done.returncode == 0, done.stderr.decode()
        (pid,) = set(self.shims()) - set(known)
        return pid

    def end(self) -> None:
        """End everything of ours."""
        for pid in (*self.wardens(), *self.shims()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            wait_for(lambda pid=pid: not alive(pid))

    def _titled(self, text: bytes) -> list[int]:
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and alive(int(entry)):
                try:
                    if text in Path(f"/proc/{entry}/cmdline").read_bytes():
                        found.append(int(entry))
                except OSError:
                    pass
        return found


@functools.cache
def _compile_once() -> None:
    install.compile_packages(CHECKOUT)


def alive(pid: int) -> bool:
    """Whether the process exists and has not ended; one that nobody has reaped has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parent(pid: int) -> int:
    """The parent of a process, 0 if the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def wait_for(condition: Any, timeout_s: float = 60) -> None:
    """Wait until `condition()` is true; fail if it does not become so."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def make_code(directory: Path, daemon: str = DAEMON) -> Path:
    """A code directory for `Manor`: the checkout's packages and the daemon."""
    directory.mkdir()
    (directory / "runtime").symlink_to(CHECKOUT / "runtime")
    (directory / "shim").symlink_to(CHECKOUT / "shim")
    (directory / "answering.py").write_text(daemon, encoding="utf-8")
    return directory


def own_shim(code: Path, **constants: object) -> None:
    """Give a code directory a copy of the shim package whose launcher has other `constants`."""
    (code / "shim").unlink()
    shutil.copytree(CHECKOUT / "shim", code / "shim", ignore=shutil.ignore_patterns("__pycache__"))
    path = code / "shim" / "launcher.py"
    lines = path.read_text(encoding="utf-8").splitlines()
    for name, value in constants.items():
        (number,) = (n for n, line in enumerate(lines) if line.startswith(f"{name} = "))
        lines[number] = f"{name} = {json.dumps(value)}"
    path.write_text("\n".join(lines), encoding="utf-8")


def as_python(source: str) -> list[str]:
    """A command that runs `source` with the checkout on its path."""
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(CHECKOUT)!r})\n{source}"]
