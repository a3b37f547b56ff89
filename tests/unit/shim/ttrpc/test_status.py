"""Codes and their names."""

from __future__ import annotations

import pytest

from shim.api.ttrpc import Status
from shim.ttrpc import status
from shim.ttrpc.status import RpcError, code_name, code_of, unknown_method, unknown_service
from tests.wire import tables


def test_codes_are_those_of_grpc() -> None:
    known = {name: int(value) for name, value in tables.constants("grpc_status").items()}
    assert dict(zip(status.NAMES, range(17), strict=True)) == known
    ours = {
        name.replace("_", ""): value
        for name, value in vars(status).items()
        if name.isupper() and name != "NAMES"
    }
    assert {name: value for name, value in ours.items() if isinstance(value, int)} == {
        name.upper(): value for name, value in known.items()
    }


def test_a_code_without_a_name_is_shown_as_its_number() -> None:
    assert code_name(status.NOT_FOUND) == "NotFound"
    assert code_name(17) == "code 17"
    assert code_name(-1) == "code -1"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RpcError(status.ABORTED, "x"), status.ABORTED),
        (EOFError(), status.OUT_OF_RANGE),
        (TimeoutError(), status.DEADLINE_EXCEEDED),
        (FileNotFoundError(), status.NOT_FOUND),
        (FileExistsError(), status.ALREADY_EXISTS),
        (PermissionError(), status.PERMISSION_DENIED),
        (OSError(28, "No space left on device"), status.UNKNOWN),
        (ValueError(), status.UNKNOWN),
    ],
    ids=repr,
)
def test_a_failure_without_a_code_gets_one_by_its_class(error: Exception, code: int) -> None:
    assert code_of(error) == code


def test_calls_that_nobody_serves_are_unimplemented() -> None:
    assert unknown_service("a.B") == Status(status.UNIMPLEMENTED, "service a.B")
    assert unknown_method("C") == Status(status.UNIMPLEMENTED, "method C")


def test_an_rpc_error_shows_its_code_and_text() -> None:
    assert str(RpcError(status.NOT_FOUND, "container a not found")) == "NotFound: container a not found"
