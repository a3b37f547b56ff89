"""The CRI's generated modules against the tables of facts, and against their source."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import TYPE_CHECKING

from google.protobuf import descriptor_pb2

from cri.api import api_pb2, api_pb2_grpc
from tests.wire import oracle, tables

if TYPE_CHECKING:
    from pathlib import Path


def test_compiled_messages_and_services_are_those_of_the_cri() -> None:
    file = descriptor_pb2.FileDescriptorProto()
    api_pb2.DESCRIPTOR.CopyToProto(file)
    assert set(oracle.rows_of(file)) == set(tables.rows("runtime.v1"))


def test_services_are_called_by_the_names_of_kubernetes() -> None:
    class Channel:
        """Records what a stub would call."""

        def __init__(self) -> None:
            self.paths: dict[str, str] = {}

        def __getattr__(self, pattern: str) -> object:
            return lambda path, **_codec: self.paths.setdefault(path, pattern)

    for service, stub in (
        ("runtime.v1.RuntimeService", api_pb2_grpc.RuntimeServiceStub),
        ("runtime.v1.ImageService", api_pb2_grpc.ImageServiceStub),
    ):
        channel = Channel()
        stub(channel)  # type: ignore[call-overload]
        streaming = {row.element: row.label for row in tables.rows("runtime.v1") if row.full_name == service}
        assert channel.paths == {
            f"/{service}/{method}": "unary_stream" if label == "server" else "unary_unary"
            for method, label in streaming.items()
        }


def test_generated_modules_load_beside_others_that_use_protobuf() -> None:
    program = (
        "import types, google.rpc.status_pb2, opentelemetry.proto.trace.v1.trace_pb2\n"
        "import cri.client, shim.api.types, tests.wire.oracle as oracle\n"
        "assert types.SimpleNamespace and oracle.message_class('ttrpc.Response')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=oracle.DESCRIPTORS.parents[3])


def test_compiling_anew_changes_nothing(tmp_path: Path) -> None:
    regenerate = importlib.import_module("tests.wire.regenerate")
    root = oracle.DESCRIPTORS.parents[3]
    subprocess.run([sys.executable, "-m", "tests.wire.regenerate", str(tmp_path)], check=True, cwd=root)
    for path in (regenerate.DESCRIPTORS, *regenerate.CRI):
        assert (tmp_path / path).read_bytes() == (root / path).read_bytes(), path
