"""Compile the .proto files of the project anew: `python -m tests.wire.regenerate`, in the project's root.

Writes the descriptors that tests hold the shim's codec against, and cri's messages, stubs and types. With a
directory as argument everything goes there instead; a test compares that with what is committed.
Needs grpcio-tools and mypy-protobuf.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "tests/wire/protos"
DESCRIPTORS = Path("tests/wire/generated/shim.binpb")
CRI = (
    Path("cri/api/api_pb2.py"),
    Path("cri/api/api_pb2.pyi"),
    Path("cri/api/api_pb2_grpc.py"),
    Path("cri/api/api_pb2_grpc.pyi"),
)
STUB_PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")


def _run(*arguments: str) -> None:
    well_known = files("grpc_tools").joinpath("_proto")
    if protoc.main(["protoc", f"-I{well_known}", *arguments]):
        raise SystemExit("protoc failed")


def compile_shim(target: Path) -> None:
    """The shim's packages, with what they import, as one set of descriptors."""
    output = target / DESCRIPTORS
    output.parent.mkdir(parents=True, exist_ok=True)
    sources = sorted(str(path) for path in PROTOS.glob("*.proto"))
    _run(f"-I{PROTOS}", "--include_imports", f"--descriptor_set_out={output}", *sources)


def compile_cri(target: Path) -> None:
    """The CRI, as modules of the package `cri.api`: named from the root, so that their imports are absolute."""
    (target / "cri/api").mkdir(parents=True, exist_ok=True)
    programs = [f"--plugin={name}={Path(sys.executable).parent / name}" for name in STUB_PLUGINS]
    outputs = [f"--{kind}_out={target}" for kind in ("python", "grpc_python", "mypy")]
    # A server may lack methods: grpc answers them with UNIMPLEMENTED.
    outputs.append(f"--mypy_grpc_out=generate_concrete_servicer_stubs:{target}")
    _run(f"-I{ROOT}", *programs, *outputs, "cri/api/api.proto")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    compile_shim(target)
    compile_cri(target)
