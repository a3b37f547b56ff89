"""Which failure gets which code: what containerd acts on."""

from __future__ import annotations

import pytest

from runtime import errors as runtime_errors
from runtime.errors import (
    ConfigError,
    IdInUse,
    InvalidId,
    InvalidState,
    ManorError,
    NotFound,
    StageError,
    Unsupported,
)
from shim import errors
from shim.api.codec import CodecError
from shim.errors import status_of
from shim.tasks import Cancelled
from shim.ttrpc import status


@pytest.mark.parametrize(
    ("failure", "code", "text"),
    [
        (
            ConfigError("process.cwd", "is empty"),
            status.INVALID_ARGUMENT,
            "config invalid: process.cwd: is empty",
        ),
        (InvalidId("../x"), status.INVALID_ARGUMENT, "invalid id"),
        (IdInUse("container a exists already"), status.ALREADY_EXISTS, "exists already"),
        (NotFound("process already finished"), status.NOT_FOUND, "process already finished"),
        (InvalidState("cannot pause"), status.FAILED_PRECONDITION, "cannot pause"),
        (
            StageError("2:INIT", "mount", "/x", "no such file"),
            status.UNKNOWN,
            "2:INIT: mount /x: no such file",
        ),
        (errors.not_found("container a"), status.NOT_FOUND, "container a: not found"),
        (errors.already_exists("container a"), status.ALREADY_EXISTS, "container a: already exists"),
        (errors.unimplemented("checkpoint"), status.UNIMPLEMENTED, "checkpoint: not implemented"),
        (CodecError("truncated"), status.INVALID_ARGUMENT, "truncated"),
        (TimeoutError("too late"), status.DEADLINE_EXCEEDED, "too late"),
        (Cancelled(), status.CANCELED, "called off"),
        (OSError(28, "No space left on device", "/x"), status.UNKNOWN, "/x: No space left on device"),
        (KeyError("bug"), status.UNKNOWN, "KeyError"),
    ],
)
def test_a_failure_has_its_code_and_its_text(failure: Exception, code: int, text: str) -> None:
    told = status_of(failure)
    assert told.code == code
    assert text in told.message


def test_what_the_kernel_cannot_do_does_not_look_like_a_method_that_is_missing() -> None:
    """Unimplemented on Create makes containerd try an older API instead of telling what is wrong."""
    assert status_of(Unsupported("no cgroup v2")).code != status.UNIMPLEMENTED


def test_every_kind_of_failure_has_a_code() -> None:
    kinds = [
        value for name, value in vars(runtime_errors).items() if name.isupper() and isinstance(value, str)
    ]
    assert len(kinds) >= 7
    for kind in kinds:
        failure = ManorError("x")
        failure.kind = kind
        assert status_of(failure).message == "x"


def test_only_what_nobody_meant_to_raise_is_a_bug() -> None:
    assert errors.is_a_bug(KeyError("x"))
    for expected in (
        ManorError("x"),
        OSError("x"),
        TimeoutError(),
        errors.not_found("x"),
        Cancelled(),
        CodecError(),
    ):
        assert not errors.is_a_bug(expected)
