"""From a shim's marks to spans in a file or at a collector, and what becomes of them when nobody listens."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from manor import trace
from shim import scribe, spans
from tests.harness.processes import descriptors
from tests.unit.shim.installed import CHECKOUT, Manor, alive, as_python, make_code, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
MARKS = (("asked", 1_000), ("plan", 3_000), ("clone", 7_000), ("answered", 8_000))


def at_once(function: Callable[[], None]) -> None:
    function()


# ---- the shim's side ----


@pytest.mark.parametrize(
    ("text", "context"),
    [
        (TRACEPARENT, (TRACE, PARENT, True)),
        (f"00-{TRACE}-{PARENT}-00", (TRACE, PARENT, False)),
        (f"00-{TRACE}-{PARENT}-03", (TRACE, PARENT, True)),
        (f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like", (TRACE, PARENT, True)),
        (f"00-{TRACE}-{PARENT}-01-more", None),
        (f"ff-{TRACE}-{PARENT}-01", None),
        (f"00-{TRACE.upper()}-{PARENT}-01", None),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE[1:]}-{PARENT}-01", None),
        (f"00-{TRACE}-{PARENT}", None),
        (f"00-{TRACE}-{PARENT}-1", None),
        ("", None),
        ("----", None),
    ],
)
def test_a_callers_context_is_read_as_w3c_writes_it(text: str, context: tuple[str, str, bool] | None) -> None:
    assert spans.parse_traceparent(text) == context


@pytest.fixture
def ear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    monkeypatch.chdir(tmp_path)  # and back, when the test is over
    with scribe.listen(str(tmp_path)) as listener:
        yield listener


def heard(ear: socket.socket, sender: spans.Spans, *names: str) -> list[list[Any]]:
    for name in names:
        sender.emit(name, "", MARKS, {"container.id": "c"})
    shim, _address = ear.accept()
    with shim:
        return [json.loads(shim.recv(spans.LONGEST_MESSAGE)) for _name in names]


def test_an_operation_is_one_message(ear: socket.socket, tmp_path: Path) -> None:
    sender = spans.Spans(str(tmp_path), at_once)
    sender.emit("exec", TRACEPARENT, MARKS, {"exec.id": "ä"})
    shim, _address = ear.accept()
    with shim:
        marks = [list(mark) for mark in MARKS]
        assert json.loads(shim.recv(65536)) == ["exec", TRACE, PARENT, True, marks, {"exec.id": "ä"}, 0]
    sender.close()


def test_create_and_start_of_a_container_are_one_trace_and_each_exec_is_another(
    ear: socket.socket, tmp_path: Path
) -> None:
    sender = spans.Spans(str(tmp_path), at_once)
    messages = heard(ear, sender, "create", "start", "exec", "start")
    traces = [message[1] for message in messages]
    assert traces[0] == traces[1]
    assert len(set(traces)) == 3
    assert [message[2] for message in messages] == [""] * 4
    sender.close()


def test_the_start_and_the_run_of_an_exec_are_one_trace(ear: socket.socket, tmp_path: Path) -> None:
    sender = spans.Spans(str(tmp_path), at_once)
    for name, exec_id in (("exec", "e1"), ("exec", "e2"), ("run", "e2"), ("run", "e1"), ("run", "e1")):
        sender.emit(name, "", MARKS, {"container.id": "c", "exec.id": exec_id})
    shim, _address = ear.accept()
    with shim:
        traces = [json.loads(shim.recv(spans.LONGEST_MESSAGE))[1] for _each in range(5)]
    assert [traces.index(trace) for trace in traces] == [0, 1, 1, 0, 4]
    sender.close()


def test_nothing_is_sent_before_the_answer_is(ear: socket.socket, tmp_path: Path) -> None:
    later: list[Callable[[], None]] = []
    sender = spans.Spans(str(tmp_path), later.append)
    sender.emit("exec", "", MARKS, {})
    sender.emit("exec", "", MARKS, {})
    ear.setblocking(False)
    with pytest.raises(BlockingIOError):
        ear.accept()
    assert len(later) == 1
    later[0]()
    shim, _address = ear.accept()
    with shim:
        assert [json.loads(shim.recv(65536))[0] for _message in range(2)] == ["exec", "exec"]
    sender.close()


def test_without_a_scribe_spans_are_counted_and_dropped(tmp_path: Path) -> None:
    sender = spans.Spans(str(tmp_path), at_once)
    before = descriptors()
    for _number in range(3):
        sender.emit("exec", "", MARKS, {})
    assert sender.dropped == 3
    assert not descriptors() - before


def test_a_scribe_that_comes_later_hears_how_many_were_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sender = spans.Spans(str(tmp_path), at_once)
    sender.emit("exec", "", MARKS, {})
    with scribe.listen(str(tmp_path)) as ear:
        sender.emit("exec", "", MARKS, {})  # too early to look again
        later = time.monotonic() + 2 * spans.RETRY_S
        monkeypatch.setattr(time, "monotonic", lambda: later)
        assert heard(ear, sender, "exec")[0][-1] == 2
    assert sender.dropped == 0
    sender.close()


def test_a_scribe_that_does_not_read_is_not_waited_for(ear: socket.socket, tmp_path: Path) -> None:
    sender = spans.Spans(str(tmp_path), at_once)
    for _number in range(2000):
        sender.emit("exec", "", MARKS * 10, {})
    lost = sender.dropped
    assert lost > 0
    # It was only behind: the connection lasts, and the next message says what was lost.
    shim, _address = ear.accept()
    with shim:
        for _number in range(2000 - lost):
            shim.recv(spans.LONGEST_MESSAGE)
        sender.emit("exec", "", MARKS, {})
        assert json.loads(shim.recv(spans.LONGEST_MESSAGE))[-1] == lost
    sender.close()


def test_a_scribe_that_has_gone_costs_one_span_and_no_error(ear: socket.socket, tmp_path: Path) -> None:
    sender = spans.Spans(str(tmp_path), at_once)
    heard(ear, sender, "exec")  # hangs up
    sender.emit("exec", "", MARKS, {})
    assert sender.dropped == 1
    sender.close()


def test_tracing_that_is_switched_off_costs_nothing(ear: socket.socket, tmp_path: Path) -> None:
    assert not spans.enabled({"MANOR_TRACE": "off"})
    assert spans.enabled({})
    sender = spans.Spans(str(tmp_path), at_once, enabled=False)
    sender.emit("exec", "", MARKS, {})
    ear.setblocking(False)
    with pytest.raises(BlockingIOError):
        ear.accept()
    assert sender.dropped == 0


def test_a_run_directory_with_a_long_name_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / ("long" * 40)
    directory.mkdir()
    monkeypatch.chdir(directory)
    with scribe.listen(str(directory)) as ear:
        sender = spans.Spans(str(directory), at_once)
        assert heard(ear, sender, "exec")[0][0] == "exec"
        sender.close()


# ---- the scribe's side ----


def message(*marks: tuple[str, int], parent: str = PARENT, dropped: int = 0) -> bytes:
    return json.dumps(["start", TRACE, parent, True, marks, {"container.id": "c"}, dropped]).encode()


def test_every_step_is_a_span_from_the_end_of_the_one_before() -> None:
    root, *steps = scribe.make_spans(message(*MARKS), 10**18)
    assert (root.trace, root.parent, root.name) == (TRACE, PARENT, "start")
    assert (root.start_ns - 10**18, root.end_ns - 10**18) == (1_000, 8_000)
    assert root.attributes == {"container.id": "c"}
    assert [(step.name, step.start_ns - 10**18, step.end_ns - 10**18) for step in steps] == [
        ("plan", 1_000, 3_000),
        ("clone", 3_000, 7_000),
        ("answered", 7_000, 8_000),
    ]
    assert {step.parent for step in steps} == {root.id}
    assert len({span.id for span in (root, *steps)}) == 4


def test_what_was_lost_is_told() -> None:
    root, *_steps = scribe.make_spans(message(*MARKS, dropped=7), 0)
    assert root.attributes["manor.dropped"] == "7"


def test_what_a_later_shim_says_besides_is_left_alone() -> None:
    """The scribe of a node may be of an earlier version than some of its shims."""
    told = json.loads(message(*MARKS))
    spans_now, spans_then = (
        scribe.make_spans(json.dumps(each).encode(), 0) for each in (told, [*told, "novel"])
    )
    assert [span.name for span in spans_then] == [span.name for span in spans_now]


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"[]", b"{}", b"null", message(), message(("a", "b"))]  # type: ignore[arg-type]
    + [json.dumps(["a", trace_id, "", True, [["a", 1]], {}, 0]).encode() for trace_id in ("", "x" * 32, 1)]
    + [json.dumps(["a", TRACE, "", True, [["a", 1]], [], 0]).encode(), b"\xff", b"[" * 100_000],
)
def test_what_is_no_operation_is_refused(data: bytes) -> None:
    with pytest.raises(scribe.NotAnOperation):
        scribe.make_spans(data, 0)


def test_the_file_is_what_manor_trace_draws(tmp_path: Path) -> None:
    exporter = scribe.FileExporter(str(tmp_path / "spans.jsonl"))
    exporter.export(scribe.make_spans(message(*MARKS), 10**18))
    exporter.export(scribe.make_spans(message(*MARKS, parent=""), 10**18))
    exporter.close()
    with open(tmp_path / "spans.jsonl", encoding="utf-8") as lines:
        found = list(trace.parse(lines))
    assert [span.name for span in found] == ["start", "plan", "clone", "answered"] * 2
    assert (found[0].trace, found[0].parent, found[0].attributes) == (TRACE, PARENT, (("container.id", "c"),))
    assert (tmp_path / "spans.jsonl").stat().st_mode & 0o777 == 0o600
    assert trace.waterfall(found[:4])


def test_the_file_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scribe, "LARGEST_FILE", 5_000)
    exporter = scribe.FileExporter(str(tmp_path / "spans.jsonl"))
    for _number in range(50):
        exporter.export(scribe.make_spans(message(*MARKS), 0))
    exporter.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spans.jsonl", "spans.jsonl.1"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 13_000
    for path in tmp_path.iterdir():
        with open(path, encoding="utf-8") as lines:
            assert all(json.loads(line) for line in lines)


@pytest.mark.parametrize(
    ("environ", "kind"),
    [
        ({}, scribe.FileExporter),
        ({"OTEL_SERVICE_NAME": "x"}, scribe.FileExporter),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, type(None)),
        ({"OTEL_TRACES_EXPORTER": "none"}, type(None)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, scribe.CollectorExporter),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, scribe.CollectorExporter),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, scribe.CollectorExporter),
    ],
)
def test_the_usual_variables_decide_where_spans_go(
    environ: dict[str, str], kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scribe.CollectorExporter, "__init__", lambda _self: None)
    assert isinstance(scribe.choose_exporter(environ, str(tmp_path)), kind)


def test_where_the_library_is_not_installed_spans_stay_on_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    chosen = scribe.choose_exporter({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, str(tmp_path))
    assert isinstance(chosen, scribe.FileExporter)
    chosen.close()
    assert "opentelemetry" in capsys.readouterr().err


# ---- processes ----


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def running(run_dir: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts scribes by hand; they end with the test."""
    started = []

    def start(**environ: str) -> subprocess.Popen[bytes]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        command = [sys.executable, "-m", "shim.scribe", str(run_dir)]
        process = subprocess.Popen(command, cwd=CHECKOUT, env=clean | environ)
        started.append(process)
        wait_for((run_dir / spans.SOCKET).exists, timeout_s=30)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_scribe_by_hand_writes_what_shims_tell_and_leaves_no_socket(
    run_dir: Path, running: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = running()
    sender = spans.Spans(str(run_dir), at_once)
    file = run_dir / scribe.FILE
    for told in (70, 140, 210):  # each more than a turn's worth, and no more than a socket holds
        for _number in range(70):
            sender.emit("exec", TRACEPARENT, MARKS, {"container.id": "c"})
        wait_for(lambda told=told: file.exists() and file.read_bytes().count(b"\n") == told)
    sender.close()
    now = time.time_ns() - time.monotonic_ns()
    with open(file, encoding="utf-8") as lines:
        first = next(trace.parse(lines))
    assert abs(first.start_ns - (now + MARKS[0][1])) < 1_000_000_000
    modules = Path(f"/proc/{process.pid}/maps").read_text()
    assert "grpc" not in modules
    process.terminate()
    assert process.wait(60) == 0
    assert not (run_dir / spans.SOCKET).exists()


def test_there_is_one_scribe(run_dir: Path, running: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = running()
    command = [sys.executable, "-m", "shim.scribe", str(run_dir)]
    second = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert (second.returncode, second.stderr) == (1, f"scribe: there is one for {run_dir}\n")
    process.kill()
    process.wait()
    third = running()  # in the place of one that left its socket behind
    assert third.poll() is None


def test_one_that_talks_nonsense_is_not_listened_to_any_more(
    run_dir: Path, running: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = running()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect(str(run_dir / spans.SOCKET))
        stranger.send(b"nonsense")
        assert stranger.recv(10) == b""
    assert process.poll() is None


def test_spans_go_to_a_collector_under_the_callers_trace(
    run_dir: Path, running: Callable[..., subprocess.Popen[bytes]]
) -> None:
    messages = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        process = running(
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            OTEL_EXPORTER_OTLP_COMPRESSION="none",
            OTEL_BSP_SCHEDULE_DELAY="50",
            OTEL_RESOURCE_ATTRIBUTES="k8s.node.name=n1",
        )
        sender = spans.Spans(str(run_dir), at_once)
        sender.emit("start", TRACEPARENT, MARKS, {"container.id": "c"})
        sender.emit("start", f"00-{TRACE}-{PARENT}-00", MARKS, {})  # not sampled
        sender.close()
        wait_for(lambda: bodies, timeout_s=30)
        process.terminate()
        assert process.wait(30) == 0
        server.shutdown()
        thread.join()
    (resource,) = messages.ExportTraceServiceRequest.FromString(bodies[0]).resource_spans
    attributes = {item.key: item.value.string_value for item in resource.resource.attributes}
    assert (attributes["service.name"], attributes["k8s.node.name"]) == ("manor", "n1")
    found = resource.scope_spans[0].spans
    assert [span.name for span in found] == ["start", "plan", "clone", "answered"]
    assert {span.trace_id.hex() for span in found} == {TRACE}
    assert found[0].parent_span_id.hex() == PARENT
    assert {span.parent_span_id for span in found[1:]} == {found[0].span_id}
    assert found[0].end_time_unix_nano - found[0].start_time_unix_nano == 7_000
    assert not (run_dir / scribe.FILE).exists()


def scribe_pid(run_dir: Path) -> int:
    """Who holds the lock, as /proc/locks knows it; 0 for nobody."""
    inode = (run_dir / scribe.LOCK).stat().st_ino if (run_dir / scribe.LOCK).exists() else -1
    for line in Path("/proc/locks").read_text().splitlines():
        if line.split()[5].endswith(f":{inode}"):
            return int(line.split()[4])
    return 0


def test_the_warden_starts_a_scribe_and_is_idle_all_the_same(tmp_path: Path) -> None:
    manor = Manor(tmp_path, make_code(tmp_path / "code"))
    del manor.environ["MANOR_TRACE"]
    try:
        manor.run("-v")
        wait_for((manor.run_dir / spans.SOCKET).exists, timeout_s=30)
        (warden,) = manor.wardens()
        pid = scribe_pid(manor.run_dir)
        assert str(pid) not in Path(f"/proc/{warden}/task/{warden}/children").read_text().split()
        wait_for(lambda: os.getpriority(os.PRIO_PROCESS, pid) == 19)
        wait_for(lambda: int(Path(f"/proc/{pid}/oom_score_adj").read_text()) >= scribe.EXPENDABLE)
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert not [entry for entry in environ if entry.startswith((b"LD_", b"PATH"))]
        fds = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        assert not [name for name in fds if os.path.basename(name).startswith("warden-")]
        manor.run("-v")
        assert scribe_pid(manor.run_dir) == pid
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not alive(pid))
    finally:
        manor.end()


def test_a_scribe_ends_after_its_warden_and_the_last_shim(run_dir: Path) -> None:
    with subprocess.Popen(["sleep", "100"]) as warden:
        source = f"""
from shim import scribe
scribe.IDLE_S = 0.05
sys.argv[1:] = [{str(run_dir)!r}, {str(warden.pid)!r}]
sys.exit(scribe.main())
"""
        with subprocess.Popen(as_python(source)) as process:
            wait_for((run_dir / spans.SOCKET).exists, timeout_s=30)
            shim = spans.connect(str(run_dir))
            assert shim is not None
            warden.kill()
            warden.wait()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
            shim.close()
            assert process.wait(5) == 0
