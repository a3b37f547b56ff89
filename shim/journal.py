"""The exit journal of a pod: how each of its processes ended, on record before anybody is told.

One line of JSON a process, appended by one write(2): from then on it is the kernel's, and the shim may be
killed. So it comes before the answer to Wait and before the event. The event waits, besides, until the line
is on the disk, for all events that are due together and without standing still. The file lies in the pod's
state directory, beside containerd's own state, and lives as long: where /run is in memory, as on most
nodes, a power failure takes both, and the containers with them.

Who reads it is the `delete` action, when the shim is dead: containerd is then told how the container ended,
and not that it was killed. A line that was cut off, or is damaged, counts as not there; the others do.

The first line says the version of the format. It is raised with a change that a reader of the one before would
misunderstand; of a later version nothing is read. Files of Manor 0.1 have no such line, and are of version 1.

The file is bounded: when it has grown, it is written anew with the processes that containerd has not
deleted yet, since of the others it knows the exit.
"""

from __future__ import annotations

import errno
import os

from runtime.errors import ManorError, describe
from runtime.linux.aio import FileSync
from runtime.linux.constants import RAMFS_MAGIC, TMPFS_MAGIC
from runtime.linux.fds import OwnedFd
from runtime.linux.mount import filesystem_magic
from runtime.record import Record
from runtime.spec.json import JsonError, dump, parse
from runtime.waiting import Readable
from shim.exits import exit_code
from shim.log import ERROR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from runtime.waiting import Operation
    from shim.log import Log

# Begins with sockets.NOTE_MARK, as no container's directory does.
FILE = "@exits"
_NEW_FILE = "@exits.new"
FORMAT = 1
HEADER = f'{{"journal":{FORMAT}}}\n'.encode()
COMPACT_BYTES = 64 * 1024
# How long an event is held back for a disk that does not answer. An exit that is told late is worse than one
# whose record a power failure could take.
SYNC_PATIENCE_S = 2.0
_READ_LIMIT = 64 << 20
_LONGEST_LINE = 1 << 16


class NewerJournal(ManorError):
    """Exits on record in a format that is not read here; says whose and which."""


class Oom(Record):
    """A kill for want of memory: whose limit was hit (`oom.CONTAINER`, POD or ABOVE; "" if that is not known)."""

    level: str
    cgroup: str = ""


class Exit(Record):
    """One line. `exec_id` is "" for init; `start_time` is in clock ticks after boot, 0 if nobody knows.

    `code` is what containerd is told, 128 + `signal` for a process that was killed by one; `exited_at` is in
    nanoseconds since 1970.
    """

    container: str
    exec_id: str
    pid: int
    start_time: int
    code: int
    signal: int
    exited_at: int
    oom: Oom | None = None

    def encode(self) -> bytes:
        """The line. Ids have no character that JSON would escape: `state.check_id`."""
        oom = ""
        if self.oom is not None:
            oom = f',"oom":"{self.oom.level}","oom_cgroup":{dump(self.oom.cgroup).decode()}'
        return (
            f'{{"container":"{self.container}","exec":"{self.exec_id}","pid":{self.pid},'
            f'"start_time":{self.start_time},"code":{self.code},"signal":{self.signal},'
            f'"exited_at":{self.exited_at}{oom}}}\n'
        ).encode()


def exit_of(
    container: str, exec_id: str, pid: int, start_time: int, status: int, when_ns: int, oom: Oom | None
) -> Exit:
    """The record of a process that ended with the wait status `status`."""
    signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return Exit(container, exec_id, pid, start_time, exit_code(status), signal, when_ns, oom)


class Journal:
    """Of the pod whose state is in `directory`; with "" nothing is kept. Make it after the fork.

    `undeleted` gives the records of the processes that containerd has not deleted. What can't be written is
    logged, once for each kind of trouble, and stops nobody.
    """

    def __init__(self, directory: str, log: Log, undeleted: Callable[[], Iterable[Exit]] = tuple) -> None:
        self._directory = directory
        self._log = log
        self.undeleted = undeleted
        self._file: OwnedFd | None = None
        self._size = 0
        self._compact_at = COMPACT_BYTES
        self._cut_off = False
        self._unsynced = False
        self._in_memory = False
        self._sync: FileSync | None = None
        self._under_way = False
        self._said: set[str] = set()
        if directory:
            self._open()

    def _open(self) -> None:
        """Open it, or the one that an earlier shim of the pod has left, which may end in half a line."""
        try:
            path = f"{self._directory}/{FILE}"
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = OwnedFd(os.open(path, flags, 0o600))
            number = self._file.fileno()
            self._size = os.fstat(number).st_size
            self._in_memory = filesystem_magic(number) in (TMPFS_MAGIC, RAMFS_MAGIC)
            self._cut_off = self._size > 0 and os.pread(number, 1, self._size - 1) != b"\n"
        except OSError as error:
            self._complain("open", error)

    def append(self, entry: Exit) -> None:
        """Put an exit on record. Never waits for a disk and never fails."""
        if self._file is None:
            return
        line = entry.encode()
        try:
            if self._size + len(line) > self._compact_at:
                self._compact()
            if self._cut_off:
                line = b"\n" + line
            if not self._size:
                line = HEADER + line
            written = os.write(self._file.fileno(), line)
            self._size += written
            self._cut_off = written < len(line)
            self._unsynced = True
            if self._cut_off:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._complain("write to", error)

    def _compact(self) -> None:
        """Begin a new file with what still counts. Renamed, so that there is a whole one at any time."""
        kept = HEADER + b"".join(entry.encode() for entry in self.undeleted())
        path = f"{self._directory}/{_NEW_FILE}"
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        new = OwnedFd(os.open(path, flags, 0o600))
        try:
            if os.write(new.fileno(), kept) != len(kept):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.rename(path, f"{self._directory}/{FILE}")
        except OSError:
            new.close()
            raise
        assert self._file is not None
        self._file.close()
        self._file, self._size, self._cut_off = new, len(kept), False
        self._compact_at = max(COMPACT_BYTES, 2 * len(kept))

    def sync(self) -> Operation[None]:
        """Wait until what has been appended is on the disk, but no longer than SYNC_PATIENCE_S. For one caller."""
        if not self._unsynced or self._file is None:
            return
        self._unsynced = False
        try:
            if self._in_memory:
                os.fdatasync(self._file.fileno())  # does nothing there, in half a microsecond
            else:
                yield from self._sync_disk()
        except OSError as error:  # TimeoutError is one
            self._complain("sync", error)

    def _sync_disk(self) -> Operation[None]:
        if self._sync is None:
            self._sync = FileSync()
        if self._under_way:  # an earlier one, which took too long: this time nobody waits for it
            yield from self._finish(self._sync, 0.0)
        if (
            self._file is None
        ):  # it was closed meanwhile; or it is another by now, which holds all that counts
            return
        self._sync.begin(self._file.fileno())
        self._under_way = True
        yield from self._finish(self._sync, SYNC_PATIENCE_S)

    def _finish(self, sync: FileSync, patience_s: float) -> Operation[None]:
        yield Readable(sync.fileno(), patience_s)
        self._under_way = False
        sync.finish()

    def _complain(self, what: str, error: OSError) -> None:
        text = f"{what} exit journal: {describe(error)}"
        if text not in self._said:
            self._said.add(text)
            self._log.write(ERROR, text)

    def close(self) -> None:
        """Close the file; it stays where it is. A sync that is under way ends with the process."""
        if self._file is not None:
            self._file.close()
            self._file = None


# --- reading ----------------------------------------------------------------------------------------------


def read(directory: str) -> list[Exit]:
    """All exits on record in a pod's state directory, in the order in which they were written; none without one.

    NewerJournal.
    """
    path = f"{directory}/{FILE}"
    try:
        with OwnedFd(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            data = b""
            while (chunk := os.read(file.fileno(), 1 << 20)) and len(data) < _READ_LIMIT:
                data += chunk
    except OSError:
        return []
    return read_lines(path, data)


def read_lines(path: str, data: bytes) -> list[Exit]:
    """The exits in what the file `path` holds. NewerJournal."""
    lines = data.splitlines()
    version = _version(lines[0]) if lines else FORMAT
    if version > FORMAT:
        raise NewerJournal(f"{path}: version {version} is of a newer Manor, this one reads up to {FORMAT}")
    return [entry for line in lines if (entry := decode(line)) is not None]


def _version(line: bytes) -> int:
    """What a first line says of those that follow."""
    try:
        told = parse(line, _LONGEST_LINE)
    except JsonError:
        return FORMAT
    version = told.get("journal") if isinstance(told, dict) else None
    return version if type(version) is int else FORMAT


def decode(line: bytes) -> Exit | None:
    """The exit that a line tells of; None for one that is cut off or damaged."""
    try:
        told = parse(line, _LONGEST_LINE)
    except JsonError:
        return None
    if not isinstance(told, dict):
        return None
    container, exec_id, level = (told.get(key) for key in ("container", "exec", "oom"))
    numbers = [told.get(key) for key in ("pid", "start_time", "code", "signal", "exited_at")]
    if not isinstance(container, str) or not isinstance(exec_id, str) or not all(map(_is_count, numbers)):
        return None
    pid, start_time, code, signal, exited_at = (int(number or 0) for number in numbers)
    oom = Oom(level, str(told.get("oom_cgroup", ""))) if isinstance(level, str) else None
    return Exit(container, exec_id, pid, start_time, code, signal, exited_at, oom)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def exit_of_init(entries: list[Exit], container_id: str, pid: int = 0, start_time: int = 0) -> Exit | None:
    """How a container's init ended, or None: the one with that pid and start time, or with 0 the last of its id."""
    for entry in reversed(entries):
        if entry.container == container_id and not entry.exec_id:
            if not pid or (entry.pid, entry.start_time) == (pid, start_time):
                return entry
    return None
