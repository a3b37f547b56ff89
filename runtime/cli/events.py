"""events: a container's counters now and then, and its OOM kills as they happen."""

from __future__ import annotations

import select
import time

from runtime import state
from runtime.cli import logs
from runtime.cli.arguments import Option, Verb
from runtime.cli.host import container
from runtime.cli.oom_watch import GONE, OOM, OomWatch
from runtime.cli.output import compact, say
from runtime.cli.stats import stats_of
from runtime.errors import InvalidArgument, InvalidState, ManorError, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.cli.arguments import Call
    from runtime.container import Container

_INTERVAL_S = 5.0


def show_events(call: Call) -> int:
    """Print events, one JSON object a line, until the container has ended; with `--stats` its counters, once."""
    found = container(call)
    interval_s = call.options["interval"]
    if interval_s <= 0:
        raise InvalidArgument("duration interval must be greater than 0")
    if found.status == state.STOPPED:
        raise InvalidState(f"container with id {found.id} is not running")
    if call.options["stats"]:
        _tell("stats", found.id, stats_of(found.cgroup))
        return 0
    _watch(found, interval_s)
    return 0


def _tell(kind: str, container_id: str, data: dict[str, Any] | None = None) -> None:
    event: dict[str, Any] = {"type": kind, "id": container_id}
    say(compact(event if data is None else event | {"data": data}) + "\n")


def _watch(found: Container, interval_s: float) -> None:
    poll = select.poll()
    poll.register(found.pidfd.fileno(), select.POLLIN)
    oom = _watch_oom(found, poll)
    due = time.monotonic() + interval_s
    while True:
        left_s = max(due - time.monotonic(), 0.0)
        ready = [fd for fd, _events in poll.poll(left_s * 1000)]
        if oom is not None:
            happened = oom.taken()
            if happened == OOM:
                _tell("oom", found.id)
            elif happened == GONE:
                return
        if found.pidfd.fileno() in ready:
            return
        if time.monotonic() >= due:
            due += interval_s
            _tell_stats(found)


def _watch_oom(found: Container, poll: select.poll) -> OomWatch | None:
    """None, with a warning, where this machine does not tell."""
    try:
        oom = OomWatch(found.cgroup)
    except Unsupported as error:
        logs.warn(str(error))
        return None
    for fd, events in oom.fds:
        poll.register(fd, events)
    return oom


def _tell_stats(found: Container) -> None:
    """One event with the counters; when they cannot be read that is logged, and the next may be better."""
    try:
        counted = stats_of(found.cgroup)
    except (ManorError, OSError) as error:
        logs.error(logs.explain(error))
        return
    _tell("stats", found.id, counted)


VERBS = {
    "events": Verb(
        "events",
        "<container-id>",
        "display container events such as OOM notifications, cpu, memory, and IO usage statistics",
        (
            Option(("--interval",), "seconds", help="set the stats collection interval", default=_INTERVAL_S),
            Option(("--stats",), "flag", help="display the container's stats then exit"),
        ),
        show_events,
        least=1,
        most=1,
        about="By default the information is displayed once every 5 seconds.",
    )
}
