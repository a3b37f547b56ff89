"""What clients write for where streams go, read."""

from __future__ import annotations

import pytest

from runtime.errors import InvalidArgument, Unsupported
from shim.destinations import Destination, LogTerms, log_terms, parse


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/run/a fifo?x%41", Destination("fifo", "/run/a fifo?x%41")),
        ("fifo:///run/f", Destination("fifo", "/run/f")),
        ("file:///var/log/x", Destination("file", "/var/log/x")),
        ("file:///var/a%20log%2541", Destination("file", "/var/a log%41")),
        ("file:///var/100%/%zz%4", Destination("file", "/var/100%/%zz%4")),
        ("file:///var/%C3%B6#here", Destination("file", "/var/ö")),
        ("binary:///bin/l", Destination("binary", "/bin/l")),
        (
            "binary-v2:///bin/l?b=1&a=two+words&none&e%3d=%26",
            Destination("binary-v2", "/bin/l", (("b", "1"), ("a", "two words"), ("none", ""), ("e=", "&"))),
        ),
        ("cri-log:///0.log?watch=1", Destination("cri-log", "/0.log", (("watch", "1"),))),
    ],
)
def test_a_destination_is_read(uri: str, expected: Destination) -> None:
    assert parse("stdout", uri) == expected


@pytest.mark.parametrize(
    "uri",
    ["file://relative/path", "cri-log://", "binary://l?x=y", "file:///a%00b", "/a\0b", "binary:///l?a=%00"],
)
def test_what_is_no_absolute_path_is_refused(uri: str) -> None:
    with pytest.raises(InvalidArgument, match="open stdout"):
        parse("stdout", uri)


def test_a_kind_that_nobody_knows_is_refused() -> None:
    with pytest.raises(Unsupported, match="open stderr npipe://x: streams of kind npipe"):
        parse("stderr", "npipe://x")


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("", LogTerms(16384, False)),
        ("max-line-bytes=64&watch=0", LogTerms(64, False)),
        ("watch=1&max-line-bytes=1048576", LogTerms(1 << 20, True)),
    ],
)
def test_the_terms_of_a_log(query: str, terms: LogTerms) -> None:
    assert log_terms(parse("stdout", f"cri-log:///0.log?{query}")) == terms


@pytest.mark.parametrize(
    "query",
    ["max-line-bytes=63", "max-line-bytes=1048577", "max-line-bytes=x", "max-line-bytes=²", "watch=2", "a=b"],
)
def test_terms_that_a_log_does_not_have_are_refused(query: str) -> None:
    with pytest.raises(InvalidArgument, match="log /0.log: "):
        parse("stdout", f"cri-log:///0.log?{query}")
