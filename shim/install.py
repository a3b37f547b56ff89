"""Write the programs of a node: `python -m shim.install BINDIR` puts `containerd-shim-manor-v2` and `manor-oci` there.

Run with the interpreter that shall run Manor. What pip writes for a console script will not do: its first
line has no flags, and goes by a virtual environment's or pyenv's detours. Both are compiled here, which saves
each of their starts 2 ms; their sources are `shim/launcher.py` and `runtime/cli/launcher.py`.
"""

from __future__ import annotations
import __future__

import ast
import compileall
import importlib.util
import marshal
import os
import py_compile
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from runtime.cli import SEALED_VERBS
from runtime.cli.verbs import TABLE
from shim.fingerprint import PACKAGES, code_version
from shim.link_order import run_order

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import CodeType

NAME = "containerd-shim-manor-v2"
COMMAND = "manor-oci"
# The verbs that those who drive a runtime use: containerd, podman.
LINKED = ("create", "delete", "exec", "kill", "run", "start", "state")
FLAGS = "-ISB"
LONGEST_FIRST_LINE = 127  # bytes, with "#!" (BINPRM_BUF_SIZE before Linux 5.1)
NEEDS = (3, 11)

_LAUNCHER = """\
#!{python} {flags}
# Compiled from {source} by `python -m shim.install`: run that again after an upgrade.
import marshal
import sys

if sys.hexversion >> 16 != {version:#x}:
    sys.exit("{name}: written for another Python: run `python -m shim.install` again")
CODE = {code!r}
exec(marshal.loads(CODE))
"""


class InstallError(Exception):
    """The launcher cannot be written so that it will work; says what to change."""


def real_interpreter(python: str) -> str:
    """The program behind `python`, which may be a link of a virtual environment. InstallError if it will not do.

    A link is followed now, once, and not at every start; a script (pyenv's shims) would be one more.
    """
    path = os.path.realpath(python)
    first_line = f"#!{path} {FLAGS}"
    if len(os.fsencode(first_line)) > LONGEST_FIRST_LINE or any(blank in path for blank in " \t\n"):
        raise InstallError(f"{path}: too long or with a blank in it, for the first line of a program")
    try:
        with open(path, "rb") as program:
            is_script = program.read(2) == b"#!"
    except OSError as error:
        raise InstallError(f"{path}: {error.strerror}") from None
    if is_script:
        raise InstallError(f"{path}: a script, give the interpreter that it runs")
    if sys.version_info < NEEDS:
        raise InstallError(
            f"{path}: Python {sys.version.split()[0]} is older than {'.'.join(map(str, NEEDS))}"
        )
    _check_modules(path)
    return path


def _check_modules(python: str) -> None:
    """Load what a warden needs beside our own code, with the flags it will have."""
    check = "import _socket, posix, _ctypes, select, fcntl, resource, _json, sys; print(sys.hexversion)"
    done = subprocess.run([python, FLAGS, "-c", check], capture_output=True, text=True, check=False)
    if done.returncode != 0 or int(done.stdout) != sys.hexversion:
        raise InstallError(f"{python}: {done.stderr.strip()[-300:] or 'is not the Python that runs this'}")


def libraries() -> str:
    """Where what talks to systemd finds its D-Bus library: a distribution's package or a copy beside us, if any."""
    found = importlib.util.find_spec("jeepney")
    if found is None or found.origin is None:
        return sysconfig.get_path("purelib")
    return str(Path(found.origin).resolve().parents[1])


def launcher_text(python: str, code: Path, daemon: str) -> str:
    """The whole file of the shim. `daemon` names the module that answers requests; tests have their own."""
    version = f"{code_version(str(code))} {daemon} {sys.executable}"
    constants = {"CODE": str(code), "VERSION": version, "DAEMON": daemon, "PYTHON": sys.executable}
    constants["LIBRARIES"] = libraries()
    return _compiled(python, code, "shim/launcher.py", NAME, constants)


def command_text(python: str, code: Path) -> str:
    """The whole file of the command."""
    constants = {"CODE": str(code), "LIBRARIES": libraries(), "BUNDLE": str(bundle_path(code))}
    return _compiled(python, code, "runtime/cli/launcher.py", COMMAND, constants)


def _compiled(python: str, code: Path, source: str, name: str, constants: dict[str, str]) -> str:
    """The program in the file `source` below `code`, with its `constants` filled in."""
    lines = []
    for line in (code / source).read_text(encoding="utf-8").splitlines():
        constant = line.partition(" = ")[0]
        lines.append(f"{constant} = {constants.pop(constant)!r}" if constant in constants else line)
    if constants:
        raise InstallError(f"{code}/{source} does not set {', '.join(constants)}")
    lines.remove("from __future__ import annotations")  # imports a module; the flag says the same
    flags = __future__.annotations.compiler_flag
    compiled = compile("\n".join(lines), name, "exec", flags, dont_inherit=True, optimize=2)
    return _LAUNCHER.format(
        python=python,
        flags=FLAGS,
        source=source,
        version=sys.hexversion >> 16,
        name=name,
        code=marshal.dumps(compiled),
    )


def bundle_path(code: Path) -> Path:
    """Where the compiled code of the command is, for this version of Python."""
    return code / "runtime" / "cli" / "__pycache__" / f"{COMMAND}.{sys.implementation.cache_tag}"


def write_bundle(code: Path) -> None:
    """All of the runtime, compiled, in one file: the index that `runtime/cli/launcher.py` reads, then the code.

    The code is in it twice: by itself, and grouped by the verbs of `LINKED` that need it, so that each reads what it
    needs in few pieces.
    """
    index: dict[str, tuple[int, int, bool, str, int, int]] = {}
    compiled: dict[str, CodeType] = {}
    sources: dict[str, ast.Module] = {}
    blob = b""
    for path in sorted((code / "runtime").rglob("*.py")):
        words = path.relative_to(code).with_suffix("").parts
        is_package = words[-1] == "__init__"
        status = path.stat()  # before it is read: who changes it now is taken for newer than its code
        name = ".".join(words[:-1] if is_package else words)
        sources[name] = ast.parse(path.read_bytes(), str(path))
        compiled[name] = compile(path.read_bytes(), str(path), "exec", dont_inherit=True, optimize=2)
        data = marshal.dumps(compiled[name])
        index[name] = (len(blob), len(data), is_package, str(path), status.st_mtime_ns, status.st_size)
        blob += data
    orders = {verb: linked(verb, sources) for verb in LINKED}
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in index:
        users = tuple(f"{verb}{half}" for verb in LINKED for half in (0, 1) if name in orders[verb][half])
        if users:
            groups.setdefault(users, []).append(name)
    places = []
    for members in groups.values():
        data = marshal.dumps([compiled[name] for name in members])
        places.append((len(blob), len(data), tuple(members)))
        blob += data
    table = marshal.dumps((index, places, orders))
    bundle_path(code).parent.mkdir(exist_ok=True)
    _replace(bundle_path(code), len(table).to_bytes(4, sys.byteorder) + table + blob, 0o644)


def linked(verb: str, sources: Mapping[str, ast.Module]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What `verb` runs until the interpreter is sealed, and after."""
    sealed = ("runtime.stages.graft",) if verb in SEALED_VERBS else ()
    first = run_order(("runtime.cli", *sealed), sources)
    rest = run_order(("runtime.cli.command", f"runtime.cli.{TABLE[verb][0]}"), sources)
    return tuple(first), tuple(name for name in rest if name not in first)


def compile_packages(code: Path) -> None:
    """Write the bytecode of our packages: a warden never does. By hash, not by date, so that no old one is taken."""
    for package in PACKAGES:
        mode = py_compile.PycInvalidationMode.CHECKED_HASH
        # With docstrings for the launcher's child, which is about to become a warden, without for the warden.
        for level in (0, 2):
            compileall.compile_dir(code / package, quiet=2, invalidation_mode=mode, optimize=level)
    compile_library(code)


def compile_library(code: Path) -> None:
    """The same for what talks to systemd, where it is a copy beside us or in our own environment.

    Compiled while it is loaded, it leaves 0.8 MB in a warden. A distribution's is left as it is.
    """
    place = Path(libraries(), "jeepney").resolve()
    in_environment = sys.prefix != sys.base_prefix and place.is_relative_to(Path(sys.prefix).resolve())
    if place.is_relative_to(code) or in_environment:
        compileall.compile_dir(place, maxlevels=0, quiet=2, optimize=2)


def write_launcher(directory: Path, code: Path, daemon: str = "shim.daemon") -> Path:
    """Write the launcher into `directory`, whole or not at all; its path. InstallError says what is in the way."""
    text = launcher_text(real_interpreter(sys.executable), code, daemon)
    return _replace(directory / NAME, text.encode(), 0o755)


def write_command(directory: Path, code: Path) -> Path:
    """The same for the command."""
    text = command_text(real_interpreter(sys.executable), code)
    write_bundle(code)
    return _replace(directory / COMMAND, text.encode(), 0o755)


def _replace(target: Path, data: bytes, mode: int) -> Path:
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}-", delete=False) as file:
        try:
            file.write(data)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.replace(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise
    return target


def main() -> int:
    """`python -m shim.install BINDIR`."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.stderr.write("usage: python -m shim.install BINDIR\n")
        return 2
    try:
        code = Path(__file__).resolve().parents[1]
        compile_packages(code)
        targets = [write_launcher(Path(sys.argv[1]), code), write_command(Path(sys.argv[1]), code)]
    except InstallError as error:
        sys.stderr.write(f"install: {error}\n")
        return 1
    for target in targets:
        sys.stdout.write(f"{target}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
