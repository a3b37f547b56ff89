"""The programs that tests, demo and benchmarks run, made or fetched once per version.

`python3 tests/harness/tools.py` brings a bare Debian machine with Python, Go (`GO`) and apt to where
everything can be run, and does nothing the second time. Programs go to `<cache>/tools/<name>-<version>/`;
Debian's containerd, docker-registry and podman are only unpacked there, because installing them
would start services. Libraries and small tools come by apt. Standard library only.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a script, before there is a package path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.harness.paths import cache_dir

CONTAINERD = "2.3.4"
RUNC = "1.5.1"
CRICTL = "1.36.0"
GO = (1, 26, 3)  # what the go.mod of containerd asks for, the most of the three
GO_THAT_FETCHES = (
    1,
    21,
    0,
)  # from there on Go fetches the version that a go.mod asks for, unless it is told not to

# What apt must have installed, and the file that tells that it is there.
PACKAGES = {
    "ca-certificates": "/etc/ssl/certs/ca-certificates.crt",
    "gcc": "/usr/bin/gcc",
    "libc6-dev": "/usr/include/stdio.h",
    "make": "/usr/bin/make",
    "pkg-config": "/usr/bin/pkg-config",
    "libseccomp-dev": "/usr/include/seccomp.h",
    "libseccomp2": "/usr/lib/*/libseccomp.so.2",
    "busybox-static": "/usr/share/doc/busybox-static",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "crun": "/usr/bin/crun",
    "iproute2": "/usr/sbin/ip",
    "iptables": "/usr/sbin/iptables",
    "lz4": "/usr/bin/lz4",
    "procps": "/usr/bin/ps",
    "strace": "/usr/bin/strace",
    "dbus": "/usr/bin/dbus-daemon",
    "systemd": "/lib/systemd/systemd",
    "uidmap": "/usr/bin/newuidmap",
    "qemu-system-x86": "/usr/bin/qemu-system-x86_64",
    # Libraries of podman and conmon.
    "libdevmapper1.02.1": "/usr/lib/*/libdevmapper.so.1.02.1",
    "libglib2.0-0": "/usr/lib/*/libglib-2.0.so.0",
    "libgpgme11": "/usr/lib/*/libgpgme.so.11",
    "libsubid4": "/usr/lib/*/libsubid.so.4",
}
# Debian packages that are unpacked, not installed, unless the machine has them: package to program.
UNPACKED = {
    "containerd": "usr/bin/containerd",
    "docker-registry": "usr/bin/docker-registry",
    "podman": "usr/bin/podman",
    "conmon": "usr/bin/conmon",
}


class ToolError(Exception):
    """A tool that is missing and could not be made; the text says what to do."""


@dataclass(frozen=True)
class Built:
    """A program that Go builds: its directory in the cache and the names that must be in it."""

    name: str
    version: str
    programs: tuple[str, ...]
    build: Callable[[Path], None]

    @property
    def directory(self) -> Path:
        """Where its programs are."""
        return cache_dir() / "tools" / f"{self.name}-{self.version}"

    def present(self) -> bool:
        """Whether every program is there; the directory appears whole or not at all."""
        return all((self.directory / program).exists() for program in self.programs)


def run(arguments: list[str], **environment: str) -> None:
    """Run a command, quietly; on failure raise ToolError with the end of what it printed."""
    done = subprocess.run(
        arguments,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise ToolError(f"{' '.join(arguments)}: exit {done.returncode}\n{done.stdout[-2000:]}")


def say(message: str) -> None:
    """Tell the person who waits what takes so long."""
    print(f"tools: {message}", file=sys.stderr, flush=True)


# ---- Go programs ----


def go_command() -> str:
    """The path of a Go that can build them. ToolError names the version that is there and the one that it takes."""
    needed = ".".join(map(str, GO))
    go = shutil.which("go")
    if go is None:
        raise ToolError(
            f"Go is not installed: containerd, runc and crictl are built from source, with Go {needed} or newer"
        )
    found = re.search(r"\bgo(\d+)\.(\d+)(?:\.(\d+))?", _printed([go, "version"]))
    version = tuple(int(number or 0) for number in found.groups()) if found else GO
    if version >= GO:
        return go
    fetches = ".".join(map(str, GO_THAT_FETCHES[:2]))
    problem = f"{go} is Go {'.'.join(map(str, version))}: containerd {CONTAINERD} is built with Go {needed} or newer"
    if version < GO_THAT_FETCHES:
        raise ToolError(f"{problem}; any from {fetches} on fetches that one by itself")
    if _printed([go, "env", "GOTOOLCHAIN"]).strip() == "local":
        raise ToolError(f"{problem}, which GOTOOLCHAIN=local forbids it to fetch: try GOTOOLCHAIN=auto")
    return go


def _printed(arguments: list[str]) -> str:
    """What a command prints, in a directory without a go.mod, whose Go it would be otherwise."""
    return subprocess.run(
        arguments, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    ).stdout


def _go_install(target: Path, packages: list[str], *flags: str) -> None:
    run([go_command(), "install", "-buildvcs=false", *flags, *packages], GOBIN=str(target))


def _build_containerd(target: Path) -> None:
    commands = [
        f"github.com/containerd/containerd/v2/cmd/{name}@v{CONTAINERD}"
        for name in ("containerd", "containerd-shim-runc-v2", "ctr")
    ]
    _go_install(target, commands)


def _build_other_containerd(target: Path, version: str) -> None:
    """In the directory of its module: `go install` takes none whose go.mod excludes or replaces something."""
    module = "github.com/containerd/containerd" + ("" if version.startswith("1.") else "/v2")
    download = [go_command(), "mod", "download", "-json", f"{module}@v{version}"]
    found = json.loads(subprocess.run(download, capture_output=True, check=True, cwd="/").stdout)
    tags = "-tags=no_btrfs,no_devmapper,no_zfs,no_aufs"
    for name in ("containerd", "containerd-shim-runc-v2", "ctr"):
        link = f"-ldflags=-X {module}/version.Version={version}"
        # What is there of its vendor directory is not whole; -mod=readonly goes by go.mod, and writes nothing.
        how = ["-C", found["Dir"], "-mod=readonly", "-buildvcs=false", tags, link]
        run([go_command(), "build", *how, "-o", str(target / name), f"./cmd/{name}"], CGO_ENABLED="0")


def _build_runc(target: Path) -> None:
    _go_install(target, [f"github.com/opencontainers/runc@v{RUNC}"], "-tags=seccomp")


def _build_crictl(target: Path) -> None:
    """Build through a module of our own: `go install` wants a list of all versions, which not every proxy has."""
    with tempfile.TemporaryDirectory() as module:
        Path(module, "go.mod").write_text(
            f"module manor.test/tools\n\nrequire sigs.k8s.io/cri-tools v{CRICTL}\n", encoding="ascii"
        )
        Path(module, "tools.go").write_text(
            '//go:build tools\n\npackage tools\n\nimport _ "sigs.k8s.io/cri-tools/cmd/crictl"\n',
            encoding="ascii",
        )
        version = f"-X sigs.k8s.io/cri-tools/pkg/version.Version=v{CRICTL}"
        arguments = ["-C", module, "-buildvcs=false", f"-ldflags={version}", "-o", str(target / "crictl")]
        run([go_command(), "build", *arguments, "sigs.k8s.io/cri-tools/cmd/crictl"], GOFLAGS="-mod=mod")


CONTAINERD_2 = Built(
    "containerd", CONTAINERD, ("containerd", "containerd-shim-runc-v2", "ctr"), _build_containerd
)


def other_containerd(version: str) -> Built:
    """A containerd of another version, for who asks for it: it is not among the tools that everybody gets."""
    programs = ("containerd", "containerd-shim-runc-v2", "ctr")
    return Built("containerd", version, programs, lambda target: _build_other_containerd(target, version))


RUNC_1 = Built("runc", RUNC, ("runc",), _build_runc)
CRICTL_1 = Built("crictl", CRICTL, ("crictl",), _build_crictl)
BUILT = (CONTAINERD_2, RUNC_1, CRICTL_1)


def program(tool: Built, name: str) -> Path:
    """The path of a built program. ToolError if `make tools` has not been run."""
    path = tool.directory / name
    if not path.exists():
        raise ToolError(f"{path} is missing: run `make tools` first")
    return path


# ---- Debian programs ----


def debian_program(package: str) -> Path:
    """The program of a Debian package that provides a service: the machine's own, else the unpacked one."""
    installed = Path("/") / UNPACKED[package]
    if installed.exists():
        return installed
    unpacked = cache_dir() / "tools" / f"debian-{package}" / UNPACKED[package]
    if not unpacked.exists():
        raise ToolError(f"{unpacked} is missing: run `make tools` first")
    return unpacked


def _present(pattern: str) -> bool:
    return any(Path("/").glob(pattern.lstrip("/")))


def _install_packages(names: list[str]) -> None:
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise ToolError(f"missing: {' '.join(names)}; install them (as root, with apt-get)")
    say(f"apt-get install {' '.join(names)}")
    _update_package_lists()
    run(
        ["apt-get", "install", "-y", "-q", "--no-install-recommends", *names],
        DEBIAN_FRONTEND="noninteractive",
    )


@functools.cache
def _update_package_lists() -> None:
    """Refresh apt's lists, once: they are asked for only where something is missing."""
    run(["apt-get", "update", "-q"])


def _unpack(package: str, target: Path) -> None:
    _update_package_lists()
    with tempfile.TemporaryDirectory() as downloads:
        os.chmod(downloads, 0o755)  # apt downloads as its own user where it can
        done = subprocess.run(
            ["apt-get", "-q", "download", package], cwd=downloads, capture_output=True, check=False
        )
        archives = list(Path(downloads).glob("*.deb"))
        if done.returncode != 0 or not archives:
            raise ToolError(f"apt-get download {package}: {done.stderr.decode(errors='replace')[-500:]}")
        run(["dpkg-deb", "-x", str(archives[0]), str(target)])


# ---- putting it together ----


@contextmanager
def _locked() -> Iterator[None]:
    """One builder at a time: two checkouts may ask for the same tool at once."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    with open(cache_dir() / "tools.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _appear_whole(directory: Path, make: Callable[[Path], None]) -> None:
    """Make a directory beside its place and rename it there, so that a broken build leaves nothing that counts."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        partial.chmod(0o755)
        make(partial)
        shutil.rmtree(directory, ignore_errors=True)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def ensure() -> None:
    """Install, unpack and build whatever is missing. ToolError says what could not be had and why."""
    with _locked():
        if not all(tool.present() for tool in BUILT):
            go_command()  # before minutes are spent on what is of no use without it
        missing = [name for name, pattern in PACKAGES.items() if not _present(pattern)]
        if missing:
            _install_packages(missing)
        for package in UNPACKED:
            try:
                debian_program(package)
            except ToolError:
                say(f"unpack Debian's {package}")
                target = cache_dir() / "tools" / f"debian-{package}"
                _appear_whole(target, lambda directory, package=package: _unpack(package, directory))  # type: ignore[misc]
        for tool in BUILT:
            _ensure_built(tool)


def ensure_built(tool: Built) -> None:
    """Build one program that is not among those that everybody gets. ToolError."""
    with _locked():
        _ensure_built(tool)


def _ensure_built(tool: Built) -> None:
    if not tool.present():
        start = time.monotonic()
        say(f"build {tool.name} {tool.version}")
        _appear_whole(tool.directory, tool.build)
        say(f"built {tool.name} {tool.version} in {time.monotonic() - start:.0f} s")


def main() -> int:
    """Ensure the tools and print where they are."""
    try:
        ensure()
    except ToolError as error:
        print(f"tools: {error}", file=sys.stderr)
        return 1
    for tool in BUILT:
        print(tool.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
