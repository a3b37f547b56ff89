"""Small OCI images made on the spot: busybox, and a pause program compiled from C.

An image is a value (blobs by digest and a manifest); who stores it is not said here. The archives are
deterministic, so the same machine gives the same digests.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"
BUSYBOX = Path("/bin/busybox")
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"

PASSWD = "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
GROUP = "root:x:0:\nalice:x:1000:\naudio:x:29:alice\nnogroup:x:65534:\n"


@dataclass(frozen=True)
class Image:
    """A repository name, a tag, the manifest's bytes and every blob it names."""

    name: str
    tag: str
    manifest: bytes
    blobs: dict[str, bytes]


def digest(data: bytes) -> str:
    """The sha256 digest in the form that manifests use."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def compile_static(name: str, *options: str) -> bytes:
    """Compile one of the C programs beside this module into a static executable."""
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory, name)
        source = PROGRAMS / f"{name}.c"
        subprocess.run(
            ["gcc", "-static", "-O2", "-s", *options, "-o", target, source], check=True, capture_output=True
        )
        return target.read_bytes()


class Layer:
    """A tar archive under construction; everything in it is root's and dates from the epoch."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(  # noqa: SIM115 - `finish` closes it
            fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT
        )

    def directory(self, name: str, mode: int = 0o755, owner: int = 0) -> None:
        """Add a directory."""
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, mode, owner, owner
        self._tar.addfile(entry)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(data), mode
        self._tar.addfile(entry, io.BytesIO(data))

    def symlink(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, target, 0o777
        self._tar.addfile(entry)

    def finish(self) -> bytes:
        """The archive, not compressed."""
        self._tar.close()
        return self._buffer.getvalue()


def assemble(name: str, tag: str, layers: Iterable[bytes], config: dict[str, object]) -> Image:
    """Put uncompressed layers and the `config` part of an image configuration together."""
    blobs: dict[str, bytes] = {}
    descriptors = []
    diff_ids = []
    for layer in layers:
        packed = gzip.compress(layer, compresslevel=1, mtime=0)
        blobs[digest(packed)] = packed
        diff_ids.append(digest(layer))
        descriptors.append({"mediaType": LAYER_TYPE, "digest": digest(packed), "size": len(packed)})
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    described = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
    ).encode()
    blobs[digest(described)] = described
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": digest(described), "size": len(described)},
        "layers": descriptors,
    }
    return Image(name, tag, json.dumps(manifest).encode(), blobs)


def busybox_layer() -> bytes:
    """A small system: busybox with all its applets, a few users, and /bin/nop, which does nothing."""
    layer = Layer()
    for name in ("bin", "dev", "etc", "home", "proc", "root", "run", "sys", "usr", "var"):
        layer.directory(name)
    layer.directory("home/alice", owner=1000)
    layer.directory("tmp", 0o1777)
    layer.file("bin/busybox", BUSYBOX.read_bytes(), 0o755)
    layer.file("bin/nop", compile_static("nop"), 0o755)
    listed = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()
    for applet in sorted(set(listed) - {"busybox"}):
        layer.symlink(f"bin/{applet}", "busybox")
    layer.file("etc/passwd", PASSWD.encode())
    layer.file("etc/group", GROUP.encode())
    return layer.finish()


def busybox() -> Image:
    """The image of almost every container here."""
    return assemble(
        "busybox", "1", [busybox_layer()], {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "WorkingDir": "/"}
    )


def pause() -> Image:
    """The sandbox image: one static program."""
    layer = Layer()
    layer.file("pause", compile_static("pause"), 0o755)
    return assemble(
        "pause", "1", [layer.finish()], {"Entrypoint": ["/pause"], "Env": ["PATH=/"], "WorkingDir": "/"}
    )
