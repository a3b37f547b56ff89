"""The program itself: its file, arguments, environment and working directory, and the execve.

We are in the container's root, as the container's user. Everything is prepared as bytes before the seccomp
filter is loaded, so that `execute` is one system call. No path here is taken beyond the container: magic
links of /proc are refused where a path comes from the config or the image.
"""

from __future__ import annotations

import errno
import os
import stat

from runtime.errors import INVALID_ARGUMENT, ConfigError, ManorError
from runtime.linux import constants as c
from runtime.linux.beneath import RESOLVE_NO_MAGICLINKS, openat2
from runtime.linux.process import close_range
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

_MAX_PASSWD = 1 << 20
_DEFAULT_HOME = b"/"
_CURRENT_DIRECTORY = -100  # AT_FDCWD


class CommandError(ManorError):
    """The program cannot be run. `exit_code` is what a shell would give: 127 not found, 126 not executable."""

    kind = INVALID_ARGUMENT

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Program(Record):
    """What execve(2) takes."""

    path: bytes
    argv: tuple[bytes, ...]
    env: dict[bytes, bytes]


def prepare(args: tuple[str, ...], env: tuple[str, ...]) -> Program:
    """Find the program and lay out its arguments and environment; to be called as the container's user.

    CommandError in the words users know from runc, ConfigError for an environment that is none.
    """
    environment = prepare_environment(env, own_home)
    path = find_program(args[0], environment.get(b"PATH", b""))
    return Program(path, tuple([_encode(argument) for argument in args]), environment)


def execute(program: Program) -> NoReturn:
    """execve(2): never returns. CommandError with the kernel's reason."""
    try:
        os.execve(program.path, program.argv, program.env)
    except OSError as error:
        raise CommandError(f"exec {_shown(program.path)}: {_reason(error)}", 126) from error


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _shown(data: bytes) -> str:
    text = data[:512].decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "?" for character in text)


def _reason(error: OSError) -> str:
    text = os.strerror(error.errno or 0)
    return text[:1].lower() + text[1:]


# ---- the environment ---------------------------------------------------------------------------


def prepare_environment(env: tuple[str, ...], home: Callable[[], bytes]) -> dict[bytes, bytes]:
    """`process.env` as a mapping, in order: the last of a name counts, and HOME is added if it is missing or empty.

    ConfigError for an entry without `=` or without a name, or with a NUL byte (runc does the same).
    """
    environment: dict[bytes, bytes] = {}
    for index, entry in enumerate(env):
        name, separator, value = _encode(entry).partition(b"=")
        if not separator:
            raise ConfigError(f"process.env[{index}]", "invalid environment variable: missing '='")
        if not name:
            raise ConfigError(f"process.env[{index}]", "invalid environment variable: name cannot be empty")
        if b"\0" in name or b"\0" in value:
            raise ConfigError(f"process.env[{index}]", "invalid environment variable: contains a NUL byte")
        environment.pop(name, None)  # to the end: a later one of the name takes its place in the order, too
        environment[name] = value
    if not environment.get(b"HOME"):
        environment.pop(b"HOME", None)
        environment[b"HOME"] = home()
    return environment


def own_home() -> bytes:
    """Our home directory by the passwd(5) file of the root we are in."""
    return home_of(os.geteuid(), _read_passwd())


def home_of(uid: int, passwd: bytes) -> bytes:
    """The home directory of `uid` in the text of a passwd(5) file; "/" if it has none."""
    wanted = b"%d" % uid
    for line in passwd.split(b"\n"):
        fields = line.strip().split(b":")
        if len(fields) >= 6 and fields[2] == wanted:
            home = fields[5]
            return home if home and b"\0" not in home else _DEFAULT_HOME
    return _DEFAULT_HOME


def _read_passwd() -> bytes:
    """The image's /etc/passwd, b"" if it is missing, not a regular file, or larger than anyone needs (1 MiB).

    Whatever the image has put there, nothing blocks and little is read (CVE-2024-9676, CVE-2026-47262).
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
    try:
        with openat2(_CURRENT_DIRECTORY, "/etc/passwd", flags, RESOLVE_NO_MAGICLINKS) as fd:
            status = os.fstat(fd.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_PASSWD:
                return b""
            return os.read(fd.fileno(), status.st_size)
    except OSError:
        return b""  # as in runc: a home directory is a convenience


# ---- the program's file ------------------------------------------------------------------------


def find_program(name: str, search_path: bytes) -> bytes:
    """The file to execute for `name`: itself if it has a slash, else the first executable one in `search_path`.

    CommandError as runc words it, since people and programs look for those words.
    """
    command = _encode(name)
    quoted = f'exec: "{_shown(command)}"'
    if b"/" in command:
        error = _why_not_executable(command)
        if error is None:
            return command
        call = f"stat {_shown(command)}: " if error.filename else ""
        code = 127 if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126
        raise CommandError(f"{quoted}: {call}{_reason(error)}", code)
    # Without a PATH nothing is searched. An empty element means the working directory to a shell; a program
    # found there is an error, not a surprise.
    for directory in search_path.split(b":") if command not in (b"", b".", b"..") and search_path else ():
        candidate = (directory or b".") + b"/" + command
        # access(2) first: most candidates do not exist, and a stat that fails costs an exception each.
        if _may_execute(candidate) and not stat.S_ISDIR(os.stat(candidate).st_mode):
            if not candidate.startswith(b"/"):
                message = f"{quoted}: cannot run executable found relative to current directory"
                raise CommandError(message, 126)
            return candidate
    raise CommandError(f"{quoted}: executable file not found in $PATH", 127)


def _why_not_executable(path: bytes) -> OSError | None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return error
    if stat.S_ISDIR(mode):
        return IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not _may_execute(path):
        return PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return None


def _may_execute(path: bytes) -> bool:
    """Our real ids are our effective ones, but access(2) leaves out what capabilities a user has, CAP_DAC_OVERRIDE.

    The other way is asked second: faccessat2(2) is newer than many a seccomp profile.
    """
    return os.access(path, os.X_OK) or os.access(path, os.X_OK, effective_ids=True)


# ---- the working directory ---------------------------------------------------------------------


def try_enter_cwd(cwd: str) -> bool:
    """`enter_cwd` before the credentials are changed; False if it must be done once more after that.

    Root may enter what the user may not; but on a volume that is another user's (an NFS export, a FUSE
    mount) it may be the other way round.
    """
    try:
        enter_cwd(cwd)
    except PermissionError:
        return False
    return True


def enter_cwd(cwd: str) -> None:
    """chdir(2) to `cwd`. OSError names it; ManorError if that is not below our root.

    A path such as /proc/self/fd/7 would lead to whatever a runtime has open, on the host too
    (CVE-2024-21626): magic links are refused, and where we are is checked afterwards.
    """
    try:
        with openat2(_CURRENT_DIRECTORY, cwd, os.O_PATH | os.O_DIRECTORY, RESOLVE_NO_MAGICLINKS) as directory:
            os.fchdir(directory.fileno())
    except OSError as error:
        if error.errno != errno.ENOSYS:
            error.filename = cwd
            raise
        os.chdir(cwd)  # a seccomp filter that does not know openat2: what is checked below has to do
    verify_cwd()


def verify_cwd() -> None:
    """ManorError unless the working directory can be reached from our root."""
    try:
        current = os.getcwdb()
    except FileNotFoundError:
        current = b"(unreachable)"  # how the kernel says it, and what C libraries turn into ENOENT
    if not current.startswith(b"/"):
        message = "current working directory is outside of container mount namespace root"
        raise ManorError(f"{message} -- possible container breakout detected")


def close_on_exec(preserved: int = 0) -> None:
    """Mark every descriptor above stdio and the `preserved` ones after it close-on-exec (CVE-2024-21626).

    Before the seccomp filter is loaded: it need not allow close_range(2).
    """
    close_range(3 + preserved, 0xFFFFFFFF, c.CLOSE_RANGE_CLOEXEC)
