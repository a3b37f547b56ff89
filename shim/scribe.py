"""The scribe: one process per node that turns what shims tell into spans, and exports them.

Shims must stay small, so the tracing library lives here. Where the OTEL_* variables name a collector, the
OpenTelemetry SDK sends spans there (OTLP over HTTP); else they are written to `spans.jsonl` in the run
directory, one OTLP request in JSON a line, which `manor trace` draws. The library is loaded only for a
collector; where it is not installed, the file is written. The warden starts a scribe; `python -m shim.scribe
[RUN_DIR]` does so by hand. It is never waited for: killed, it costs the spans of the time until the next.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from runtime.spec.json import JsonError, parse
from shim.spans import LONGEST_MESSAGE, SOCKET, parse_traceparent
from shim.start_request import peer_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import FrameType

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan

FILE = "spans.jsonl"
LOCK = "scribe.lock"
LARGEST_FILE = 16 << 20  # bytes; the file before it is kept as spans.jsonl.1
IDLE_S = 60  # without a shim, once the warden that started it has gone
AT_ONCE = 64  # messages of one shim before the next one's turn
BATCH_S = 0.1  # a socket's buffer holds what a shim has to say in that time, and more
SERVICE = "manor"
EXPENDABLE = 500  # oom_score_adj: a node short of memory shall take this first


class NotAnOperation(ValueError):
    """A message that no shim of this version sends."""


@dataclass(frozen=True)
class Span:
    """A finished span; times are nanoseconds since the epoch, ids hexadecimal, `parent` "" for a root."""

    trace: str
    id: str
    parent: str
    name: str
    start_ns: int
    end_ns: int
    sampled: bool = True
    attributes: Mapping[str, str] = field(default_factory=dict)


class Exporter(Protocol):
    """Where spans go."""

    def export(self, spans: Sequence[Span]) -> None:
        """Take the spans of one operation."""

    def close(self) -> None:
        """Let nothing be lost that was taken."""


# ---- from messages to spans ----


def make_spans(message: bytes, epoch_ns: int) -> list[Span]:
    """The span of an operation and those of its steps; `epoch_ns` is what to add to CLOCK_MONOTONIC.

    A step's mark says when it was done, so that it began where the one before it ended: work of the stages
    that overlaps is drawn one after the other, as it was finished. NotAnOperation for anything else.
    """
    try:
        # A later version may have more to say at the end.
        name, trace, parent, sampled, marks, attributes, dropped, *_more = parse(message)
        whole = parse_traceparent(f"00-{trace}-{parent or 'f' * 16}-00")
        times = [int(when) + epoch_ns for _step, when in marks]
        steps = [str(step) for step, _when in marks]
        texts = {str(key): str(value) for key, value in attributes.items()}
    except (JsonError, ValueError, TypeError, AttributeError) as error:
        raise NotAnOperation(str(error)) from None
    if whole is None or not times:
        raise NotAnOperation("no trace or no times")
    if dropped:
        texts["manor.dropped"] = str(dropped)
    root = Span(trace, _new_id(), parent, str(name), times[0], times[-1], bool(sampled), texts)
    spans = [root]
    for step, begin, end in zip(steps[1:], times, times[1:], strict=False):
        spans.append(Span(trace, _new_id(), root.id, step, begin, end, root.sampled))
    return spans


def _new_id() -> str:
    return f"{random.getrandbits(64) or 1:016x}"


# ---- exporters ----


class FileExporter:
    """OTLP requests in JSON, one a line (the OTLP file exporter's format), in a file that does not grow for ever."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = self._open()
        self._resource = {"attributes": [_attribute("service.name", SERVICE)]}

    def export(self, spans: Sequence[Span]) -> None:
        """Write them at once, as one write: a reader never sees half a line."""
        scope = {"scope": {"name": SERVICE}, "spans": [_as_json(span) for span in spans]}
        request = {"resourceSpans": [{"resource": self._resource, "scopeSpans": [scope]}]}
        os.write(self._file, json.dumps(request, separators=(",", ":")).encode() + b"\n")
        if os.fstat(self._file).st_size > LARGEST_FILE:
            os.close(self._file)
            os.replace(self._path, f"{self._path}.1")
            self._file = self._open()

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _attribute(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}


def _as_json(span: Span) -> dict[str, Any]:
    found: dict[str, Any] = {
        "traceId": span.trace,
        "spanId": span.id,
        "name": span.name,
        "kind": 1,
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
    }
    if span.parent:
        found["parentSpanId"] = span.parent
    if span.attributes:
        found["attributes"] = [_attribute(key, value) for key, value in span.attributes.items()]
    return found


class CollectorExporter:
    """The OpenTelemetry SDK: its batches, its retries, and everything that OTEL_* variables say about them."""

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        os.environ.setdefault("OTEL_SERVICE_NAME", SERVICE)
        self._resource = Resource.create()
        self._processor = BatchSpanProcessor(OTLPSpanExporter())

    def export(self, spans: Sequence[Span]) -> None:
        """Hand them to the processor, which drops those that the caller does not sample."""
        for span in spans:
            self._processor.on_end(_readable(span, self._resource))

    def close(self) -> None:
        """Send what is waiting, within the time that OTEL_BSP_EXPORT_TIMEOUT allows."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]


def _readable(span: Span, resource: Resource) -> ReadableSpan:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

    def context(span_id: str, is_remote: bool) -> SpanContext:
        flags = TraceFlags(TraceFlags.SAMPLED if span.sampled else TraceFlags.DEFAULT)
        return SpanContext(int(span.trace, 16), int(span_id, 16), is_remote, flags)

    return ReadableSpan(
        name=span.name,
        context=context(span.id, is_remote=False),
        parent=context(span.parent, is_remote=bool(span.attributes)) if span.parent else None,
        resource=resource,
        attributes=dict(span.attributes),
        kind=SpanKind.INTERNAL,
        start_time=span.start_ns,
        end_time=span.end_ns,
        instrumentation_scope=InstrumentationScope(SERVICE),
    )


def choose_exporter(environ: Mapping[str, str], run_dir: str) -> Exporter | None:
    """By the variables of the OpenTelemetry specification; None if they turn tracing off.

    A file, too, where a collector is wanted and the library for that is not installed.
    """
    if (
        environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        or environ.get("OTEL_TRACES_EXPORTER") == "none"
    ):
        return None
    wanted = (
        environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        or environ.get("OTEL_TRACES_EXPORTER") == "otlp"  # at the standard address of a collector
    )
    if wanted:
        try:
            return CollectorExporter()
        except ImportError as error:  # an installation has only what shims need
            sys.stderr.write(f"scribe: no collector, but {run_dir}/{FILE}: {error}\n")
    return FileExporter(f"{run_dir}/{FILE}")


# ---- the process ----


class Scribe:
    """Reads from all shims in turn, and never writes to one."""

    def __init__(self, listener: socket.socket, exporter: Exporter) -> None:
        self._listener = listener
        self._exporter = exporter
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._shims: set[socket.socket] = set()
        self._stop_reader, self._stop_writer = socket.socketpair()
        self._selector.register(self._stop_reader, selectors.EVENT_READ)
        self._stopping = False

    def stop(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """Let `serve` return; may be a signal handler."""
        self._stopping = True
        self._stop_writer.send(b"x")

    def serve(self, starter: int) -> None:
        """Until told to stop, or until there is no shim and no process `starter` (0: nobody in particular) any more."""
        while not self._stopping:
            ready = self._selector.select(IDLE_S)
            if not ready and not self._shims and starter and not _exists(starter):
                return
            more = False
            for key, _events in ready:
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj in self._shims:
                    more |= self._read(key.fileobj)
            if ready and not more:
                time.sleep(
                    BATCH_S
                )  # being woken for each operation takes more from a busy node than the spans

    def _accept(self) -> None:
        shim, _address = self._listener.accept()
        if peer_of(shim.fileno())[1] != os.geteuid():
            shim.close()
            return
        shim.setblocking(False)
        self._shims.add(shim)
        self._selector.register(shim, selectors.EVENT_READ)

    def _read(self, shim: socket.socket) -> bool:
        """Take what a shim has sent; whether there may be more."""
        epoch_ns = time.time_ns() - time.monotonic_ns()
        for _turn in range(AT_ONCE):
            try:
                message = shim.recv(LONGEST_MESSAGE)
                if not message:
                    break
                self._exporter.export(make_spans(message, epoch_ns))
            except BlockingIOError:
                return False
            except NotAnOperation:
                break
            except OSError as error:
                sys.stderr.write(f"scribe: {error}\n")
                break
        else:
            return True
        self._selector.unregister(shim)
        self._shims.discard(shim)
        shim.close()
        return False


def _exists(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def hold_lock(run_dir: str) -> int | None:
    """The lock that makes us the only scribe of a run directory, as long as it is open; None if there is one."""
    lock = os.open(f"{run_dir}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def listen(run_dir: str) -> socket.socket:
    """The socket that shims look for. Its name is relative, as the directory's may be longer than an address."""
    os.chdir(run_dir)
    try:
        os.unlink(SOCKET)  # of one that was killed: we hold the lock
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = f"{run_dir}/{SOCKET}"
    listener.bind(path if len(os.fsencode(path)) < 108 else SOCKET)
    listener.listen(512)
    return listener


def _make_way() -> None:
    """Others first: spans can wait, and can be done without."""
    os.nice(19)
    with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as score:
        if int(score.read()) < EXPENDABLE:
            score.write(str(EXPENDABLE))


def main() -> int:
    """`python -m shim.scribe [RUN_DIR [PID]]`; with the pid of a warden it ends some time after that one."""
    run_dir = os.path.abspath(
        sys.argv[1] if len(sys.argv) > 1 else os.environ.get("MANOR_RUN_DIR", "/run/manor")
    )
    starter = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    os.umask(0o077)
    try:
        lock = hold_lock(run_dir)
    except OSError as error:
        sys.stderr.write(f"scribe: {run_dir}: {error.strerror}\n")
        return 1
    if lock is None:
        sys.stderr.write(f"scribe: there is one for {run_dir}\n")
        return 1
    exporter = choose_exporter(os.environ, run_dir)
    if exporter is None:
        return 0
    with listen(run_dir) as listener:
        _make_way()  # only now: a busy node would keep us from ever having everything loaded
        scribe = Scribe(listener, exporter)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, scribe.stop)
        scribe.serve(starter)
    os.unlink(SOCKET)
    exporter.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
