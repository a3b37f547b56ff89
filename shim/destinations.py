"""Where the standard streams of a process are to go, read from what a client writes: a path, or a URI.

    PATH, fifo://PATH                     a fifo that the client made; a file or device that is there, for output
    file:///PATH                          a file, appended to as it comes
    cri-log:///PATH?max-line-bytes=N      a container log as the kubelet reads it; `watch=1`: see `writer`
    binary:///PATH?NAME=VALUE, binary-v2  a program that takes the output; names and values are its arguments
    ttrpc+unix://PATH?streaming_id=ID     a stream that the client has opened at the shim's own door, whose PATH it is

Nothing is opened here. Source: containerd pkg/process/io.go, internal/cri/io/helpers.go; cri-log is our own.
"""

from __future__ import annotations

from runtime.errors import InvalidArgument, Unsupported
from runtime.record import Record
from shim.crilog import MAX_LINE_BYTES

FIFO = "fifo"
FILE = "file"
CRI_LOG = "cri-log"
BINARY = "binary"
BINARY_V2 = "binary-v2"
STREAM = "ttrpc+unix"

# Those that take both outputs of a process, whatever its client says about stderr, as with containerd's own shim.
LOGS = (FILE, CRI_LOG, BINARY, BINARY_V2)
# How else a shim that had another door could be reached: by gRPC, in a virtual machine.
_OTHER_DOORS = ("grpc+", "ttrpc+")
_SHORTEST_LINE, _LONGEST_LINE = 64, 1 << 20


class Destination(Record):
    """`parameters` are the query's, in its order."""

    scheme: str
    path: str
    parameters: tuple[tuple[str, str], ...] = ()

    def is_a_log(self) -> bool:
        """True for what is reached through a process of its own and takes both outputs."""
        return self.scheme in LOGS

    def is_a_stream(self) -> bool:
        """True for what a client opens at the shim's own door; `stream_id` says which it is."""
        return self.scheme == STREAM

    def stream_id(self) -> str:
        """The name of a stream."""
        return dict(self.parameters)["streaming_id"]


class LogTerms(Record):
    """What the parameters of a cri-log say."""

    max_line_bytes: int = MAX_LINE_BYTES
    watch: bool = False


def parse(name: str, uri: str) -> Destination:
    """Where `uri` leads, `name` being the stream's for errors. Unsupported scheme, InvalidArgument."""
    scheme, separator, rest = uri.partition("://")
    if "\0" in uri:
        raise InvalidArgument(f"open {name}: a null byte in the path")
    if not separator:
        return Destination(FIFO, uri)
    if scheme == FIFO:
        return Destination(FIFO, rest)
    if scheme.startswith(_OTHER_DOORS) and scheme != STREAM:
        raise Unsupported(
            f"open {name} {uri}: streams over {scheme} are not supported, those over {STREAM} are"
        )
    if scheme not in (*LOGS, STREAM):
        raise Unsupported(f"open {name} {uri}: streams of kind {scheme} are not supported")
    path, _, query = rest.partition("#")[0].partition("?")
    path = _decoded(path)
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(f"open {name} {uri}: the path must be absolute")
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    parameters = tuple([(_query_word(key), _query_word(value)) for key, _, value in pairs])
    if any("\0" in word for pair in parameters for word in pair):
        raise InvalidArgument(f"open {name} {uri}: a parameter has a null byte")
    destination = Destination(scheme, path, parameters)
    if scheme == CRI_LOG:
        log_terms(destination)  # what cannot be is refused before anything is made
    if scheme == STREAM and not dict(parameters).get("streaming_id"):
        raise InvalidArgument(f"open {name} {uri}: it has no streaming_id")
    return destination


def log_terms(destination: Destination) -> LogTerms:
    """The terms of a cri-log. InvalidArgument for a parameter that it does not have, or a value out of range."""
    most, watch = MAX_LINE_BYTES, False
    for key, value in destination.parameters:
        if key == "max-line-bytes" and value.isascii() and value.isdigit() and len(value) < 10:
            most = int(value)
        elif key == "watch" and value in ("0", "1"):
            watch = value == "1"
        else:
            raise InvalidArgument(f"log {destination.path}: parameter {key}={value} is not known")
    if not _SHORTEST_LINE <= most <= _LONGEST_LINE:
        raise InvalidArgument(
            f"log {destination.path}: max-line-bytes {most} is not from {_SHORTEST_LINE} to {_LONGEST_LINE}"
        )
    return LogTerms(most, watch)


def _query_word(text: str) -> str:
    return _decoded(text.replace("+", " "))


def _decoded(text: str) -> str:
    """`text` without percent-encoding (RFC 3986, 2.1); a percent sign that begins none stays."""
    if "%" not in text:
        return text
    first, *rest = text.encode("utf-8", "surrogateescape").split(b"%")
    data = bytearray(first)
    for part in rest:
        try:
            number = int(part[:2], 16) if part[:2].isalnum() and len(part) > 1 else -1
        except ValueError:
            number = -1
        data += bytes((number,)) + part[2:] if number >= 0 else b"%" + part
    return data.decode("utf-8", "surrogateescape")
