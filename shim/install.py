"""Write the launcher: `python -m shim.install BINDIR` puts `containerd-shim-manor-v2` there.

Run with the interpreter that shall run Manor. What pip writes for a console script will not do: its first
line has no flags, and goes by a virtual environment's or pyenv's detours. The launcher is compiled here,
which saves each of its starts 2 ms; its source is `shim/launcher.py`.
"""

from __future__ import annotations
import __future__

import compileall
import hashlib
import marshal
import os
import py_compile
import subprocess
import sys
import tempfile
from pathlib import Path

NAME = "containerd-shim-manor-v2"
PACKAGES = ("runtime", "shim")  # what a warden loads
FLAGS = "-ISB"
LONGEST_FIRST_LINE = 127  # bytes, with "#!" (BINPRM_BUF_SIZE before Linux 5.1)
NEEDS = (3, 11)

_LAUNCHER = """\
#!{python} {flags}
# Manor's launcher, compiled from shim/launcher.py by `python -m shim.install`: run that again after an upgrade.
import marshal
import sys

if sys.hexversion >> 16 != {version:#x}:
    sys.exit("{name}: written for another Python: run `python -m shim.install` again")
CODE = {code!r}
exec(marshal.loads(CODE))
"""


class InstallError(Exception):
    """The launcher cannot be written so that it will work; says what to change."""


def code_version(code: Path) -> str:
    """A name for this state of our packages and of the interpreter: a warden serves launchers of its own only."""
    digest = hashlib.sha256(f"{code}\0{sys.version}\0".encode())
    for package in PACKAGES:
        for path in sorted((code / package).rglob("*.py")):
            digest.update(f"{path.relative_to(code)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


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
    check = "import _socket, posix, ctypes, select, fcntl, resource, _json, sys; print(sys.hexversion)"
    done = subprocess.run([python, FLAGS, "-c", check], capture_output=True, text=True, check=False)
    if done.returncode != 0 or int(done.stdout) != sys.hexversion:
        raise InstallError(f"{python}: {done.stderr.strip()[-300:] or 'is not the Python that runs this'}")


def launcher_text(python: str, code: Path, daemon: str) -> str:
    """The whole file. `daemon` names the module that answers requests; tests have their own."""
    source = (code / "shim" / "launcher.py").read_text(encoding="utf-8")
    version = f"{code_version(code)} {daemon} {sys.executable}"
    constants = {"CODE": str(code), "VERSION": version, "DAEMON": daemon, "PYTHON": sys.executable}
    lines = []
    for line in source.splitlines():
        name = line.partition(" = ")[0]
        lines.append(f"{name} = {constants.pop(name)!r}" if name in constants else line)
    if constants:
        raise InstallError(f"{code}/shim/launcher.py does not set {', '.join(constants)}")
    lines.remove("from __future__ import annotations")  # imports a module; the flag says the same
    flags = __future__.annotations.compiler_flag
    compiled = compile("\n".join(lines), NAME, "exec", flags, dont_inherit=True, optimize=2)
    return _LAUNCHER.format(
        python=python, flags=FLAGS, version=sys.hexversion >> 16, name=NAME, code=marshal.dumps(compiled)
    )


def compile_packages(code: Path) -> None:
    """Write the bytecode of our packages: a warden never does. By hash, not by date, so that no old one is taken."""
    for package in PACKAGES:
        mode = py_compile.PycInvalidationMode.CHECKED_HASH
        # With docstrings for the launcher's child, which is about to become a warden, without for the warden.
        for level in (0, 2):
            compileall.compile_dir(code / package, quiet=2, invalidation_mode=mode, optimize=level)


def write_launcher(directory: Path, code: Path, daemon: str = "shim.daemon") -> Path:
    """Write the launcher into `directory`, whole or not at all; its path. InstallError says what is in the way."""
    text = launcher_text(real_interpreter(sys.executable), code, daemon)
    target = directory / NAME
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=directory, prefix=f".{NAME}-", delete=False
    ) as file:
        try:
            file.write(text)
            os.fchmod(file.fileno(), 0o755)
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
        target = write_launcher(Path(sys.argv[1]), code)
    except InstallError as error:
        sys.stderr.write(f"install: {error}\n")
        return 1
    sys.stdout.write(f"{target}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
