"""`manor ps`: the pods of a node, their containers and execs, with the stage each is in and its age.

Each shim is asked for what it has, all at once and none for longer than a deadline. Of one that does not answer (it is
stopped, or dead, or of an earlier version) what is on disk is shown, and that it is so.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime

from manor import ledger
from manor.ledger import Pod, Stage, Untrusted
from manor.usage import size, usage_of, usage_of_shim
from runtime.errors import ManorError, describe
from runtime.state import STOPPED, State
from runtime.status import status_of
from shim import daemon
from shim.api import ps
from shim.api.types import Empty
from shim.ttrpc import status
from shim.ttrpc.client import Client
from shim.ttrpc.status import RpcError

ALIVE = "alive"
NO_ANSWER = "no answer"
DEAD = "dead"
TIMEOUT_S = 2.0
_AT_ONCE = 32
_HERTZ = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """A container's init (`exec` ""), or an exec. `step` is the last that is done of a start that is under way.

    CPU time and memory are of all that came of it (`manor/usage.py`); None of who does not run.
    """

    container: str
    exec: str
    pid: int
    status: str
    step: str
    age_s: float
    exit_status: int = 0
    cpu_s: float | None = None
    memory_bytes: int | None = None


@dataclass
class Row:
    """A pod as it is shown. `stages` are the processes that its shim has for the moment, to start something or to
    write a log; `note` says where things are not what they should be. CPU time and memory are the shim's alone.
    """

    namespace: str
    pod: str
    shim: str
    pid: int
    version: str = ""
    sandbox: str = ""
    age_s: float = 0.0
    cpu_s: float | None = None
    memory_bytes: int | None = None
    note: str = ""
    processes: list[Process] = field(default_factory=list)
    stages: list[dict[str, object]] = field(default_factory=list)


def look(run_dir: str, timeout_s: float) -> list[Row]:
    """All pods of the node. Untrusted, OSError."""
    found = list(ledger.pods(run_dir))
    if not found:
        return []
    with ThreadPoolExecutor(min(_AT_ONCE, len(found))) as workers:
        rows = list(workers.map(lambda pod: _row(pod, timeout_s), found))
    _place(rows, ledger.stages())
    _measure(rows)
    return sorted(rows, key=lambda row: (row.namespace, row.pod))


def _row(pod: Pod, timeout_s: float) -> Row:
    row = Row(pod.namespace, pod.name, DEAD, 0)
    if pod.deed is not None:
        row.pid, row.age_s = pod.deed.pid, _since(pod.deed.began / 1e9)
    try:
        answer = _ask(pod.socket, timeout_s)
    except RpcError as error:
        row.shim = ALIVE
        row.note = (
            "an earlier version: no execs" if error.code == status.UNIMPLEMENTED else f"failed: {error}"
        )
    except (FileNotFoundError, ConnectionRefusedError):
        row.note = "the shim is dead: from its files"
    except TimeoutError:
        row.shim, row.note = NO_ANSWER, f"from its files: no answer in {timeout_s:g} s"
    except (OSError, ManorError) as error:
        row.shim, row.note = NO_ANSWER, f"from its files: {describe(error)}"
    else:
        row.shim, row.pid, row.version, row.sandbox = ALIVE, answer.pid, answer.version, answer.sandbox
        row.processes = [_answered(each) for each in answer.processes]
        return row
    row.processes = [_from_file(pod, name, known) for name, known in pod.containers.items()]
    return row


def _ask(address: str, timeout_s: float) -> ps.ListResponse:
    if not address:
        raise FileNotFoundError("no socket is on record")
    with Client(address, timeout_s) as client:
        return client.request(ps.SERVICE, "List", Empty(), ps.ListResponse, timeout_s)


def _answered(shown: ps.ProcessShown) -> Process:
    age_s = _age_of(shown.start_time) if shown.start_time else shown.age_ms / 1000
    return Process(
        shown.container, shown.exec_id, shown.pid, shown.status, shown.step, age_s, shown.exit_status
    )


def _from_file(pod: Pod, container_id: str, known: State | None) -> Process:
    if known is None:
        return Process(container_id, "", 0, "unknown", "", 0.0)
    now = status_of(pod.directory, known)
    pid = 0 if now == STOPPED else known.pid
    try:
        age_s = _since(datetime.fromisoformat(known.created[:26] + "+00:00").timestamp())
    except ValueError:
        age_s = 0.0
    return Process(container_id, "", pid, now, "", age_s)


def _age_of(start_time: int) -> float:
    """Of a process, by its start in clock ticks after boot."""
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - start_time / _HERTZ)


def _since(seconds: float) -> float:
    return max(0.0, time.time() - seconds)


def _place(rows: Iterable[Row], stages: Iterable[Stage]) -> None:
    """Put each stage under the shim in whose session it is: who sets up a start, and for how long it has."""
    by_pid = {row.pid: row for row in rows if row.pid}
    for stage in stages:
        row = by_pid.get(stage.session)
        if row is not None:
            row.stages.append(
                {
                    "stage": stage.name,
                    "pid": stage.pid,
                    "state": stage.state,
                    "age_s": _age_of(stage.start_time),
                }
            )


def _measure(rows: Iterable[Row]) -> None:
    """Note what everybody uses who runs."""
    known = list(rows)
    used = usage_of({each.pid for row in known for each in row.processes if _runs(each)})
    for row in known:
        if row.shim != DEAD and row.pid and (own := usage_of_shim(row.pid)) is not None:
            row.cpu_s, row.memory_bytes = own.cpu_s, own.memory_bytes
        row.processes = [
            replace(each, cpu_s=used[each.pid].cpu_s, memory_bytes=used[each.pid].memory_bytes)
            if _runs(each) and each.pid in used
            else each
            for each in row.processes
        ]


def _runs(process: Process) -> bool:
    return process.pid > 0 and process.status != STOPPED


# ---- showing it ----------------------------------------------------------------------------------


def age(seconds: float) -> str:
    """For people: "3s", "5m", "2h14m", "3d4h"."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600}h"


def printable(text: str) -> str:
    """A text of somebody else's, as it may go to a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def table(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> list[str]:
    """Columns as wide as they need be."""
    cells = [tuple(heads), *(tuple(printable(str(cell)) for cell in line) for line in lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def lines_of(rows: Iterable[Row]) -> list[tuple[object, ...]]:
    """The table's: one for a pod, and under it one for each process and stage."""
    found: list[tuple[object, ...]] = []
    for row in rows:
        what = f"shim {row.shim}" + (f", pod {row.sandbox}" if row.sandbox else "")
        place = (row.namespace, row.pod, "", "", row.pid or "-", what, age(row.age_s))
        found.append((*place, *_used(row.cpu_s, row.memory_bytes), row.note))
        for one in row.processes:
            doing = f"after {one.step!r}" if one.step else ""
            if one.status == STOPPED and row.shim == ALIVE and not row.note:
                doing = f"exit {one.exit_status}"
            place = ("", "", one.container, one.exec, one.pid or "-", one.status, age(one.age_s))
            found.append((*place, *_used(one.cpu_s, one.memory_bytes), doing))
        for stage in row.stages:
            seconds = stage["age_s"]
            assert isinstance(seconds, float)
            at_work = ("", "", "", "", stage["pid"], f"[{stage['stage']}]", age(seconds))
            found.append((*at_work, "", "", stage["state"]))
    return found


def _used(cpu_s: float | None, memory_bytes: int | None) -> tuple[str, str]:
    return "" if cpu_s is None else f"{cpu_s:.2f}s", "" if memory_bytes is None else size(memory_bytes)


HEADS = ("NAMESPACE", "POD", "CONTAINER", "EXEC", "PID", "STATUS", "AGE", "CPU", "MEMORY", "NOTE")


def main(arguments: Sequence[str]) -> int:
    """Print what there is. 1 if a shim does not answer, 2 if nothing can be known."""
    parser = argparse.ArgumentParser(prog="manor ps", description="pods, containers and execs of this node")
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument("--run-dir", default=daemon.run_dir(os.environ), help="%(default)s")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="SECONDS", help="for each shim")
    asked = parser.parse_args(arguments)
    try:
        rows = look(asked.run_dir, asked.timeout)
    except (OSError, Untrusted) as error:
        told = describe(error) if isinstance(error, OSError) else str(error)
        print(f"manor ps: {told}", file=sys.stderr)
        return 2
    if asked.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    elif rows:
        print("\n".join(table(HEADS, lines_of(rows))))
    else:
        print(f"manor ps: no pods in {asked.run_dir}", file=sys.stderr)
    return int(any(row.shim != ALIVE for row in rows))
