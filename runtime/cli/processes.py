"""ps: the processes of a container, as pids or in the words of ps(1)."""

from __future__ import annotations

import os

from runtime.cli.arguments import Option, Verb
from runtime.cli.host import container
from runtime.cli.output import compact, say
from runtime.errors import InvalidArgument, Unsupported
from runtime.linux.fds import OwnedFd, pipe
from runtime.stages.clone import spawn_hook, unblock_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cli.arguments import Call


def show_processes(call: Call) -> int:
    """Print the container's processes: a JSON list of pids, or the lines of ps(1) that are theirs."""
    found = container(call)
    pids = sorted(found.cgroup.pids())
    if call.options["format"] == "json":
        say(compact(pids) + "\n")
        return 0
    if call.options["format"] != "table":
        raise InvalidArgument("invalid format option")
    say(chosen(_output_of(["ps", *(call.arguments[1:] or ["-ef"])]), pids))
    return 0


def chosen(table: str, pids: list[int]) -> str:
    """The header of what ps(1) printed, and the lines whose column PID is one of `pids`. Unsupported without one."""
    header, *lines = table.split("\n")
    titles = header.split()
    if "PID" not in titles:
        raise Unsupported("couldn't find PID field in ps output")
    column = titles.index("PID")
    kept = [header]
    for line in lines:
        fields = line.split()
        if len(fields) > column:
            if not fields[column].isdecimal():
                raise Unsupported(f"unable to parse pid: {fields[column]!r} in ps output")
            if int(fields[column]) in pids:
                kept.append(line)
    return "".join(f"{line}\n" for line in kept)


def _output_of(words: list[str]) -> str:
    """What the host's program prints, on either stream. Unsupported with that when it fails."""
    reader, writer = pipe()
    with reader:
        with writer, OwnedFd(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)) as null:
            fds = (null.fileno(), writer.fileno())
            pid, pidfd = spawn_hook(lambda: _become(words, *fds), fds)
        os.close(pidfd)
        output = b""
        while part := os.read(reader.fileno(), 65536):
            output += part
    status = os.waitpid(pid, 0)[1]
    text = output.decode("utf-8", "surrogateescape")
    if status:
        raise Unsupported(f"exit status {os.waitstatus_to_exitcode(status)}: {text.strip()}")
    return text


def _become(words: list[str], null: int, output: int) -> None:
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    unblock_signals()
    try:
        os.execvp(words[0], words)
    except OSError as error:
        os.write(2, f"{words[0]}: {os.strerror(error.errno or 0)}".encode())
    os._exit(127)


VERBS = {
    "ps": Verb(
        "ps",
        "<container-id> [ps options]",
        "ps displays the processes running inside a container",
        (Option(("--format", "-f"), help="select one of: table or json", default="table"),),
        show_processes,
        least=1,
        most=None,
        own_command=True,
        about="What stands behind the id is for ps(1); -ef without.",
    )
}
