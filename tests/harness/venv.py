"""The Python environments: `.venv` for the project, one more per other interpreter for the unit tests.

`python3 tests/harness/venv.py` makes `.venv` from the machine's own CPython (never a pyenv shim: the
launcher's first line needs the real path), installs what pyproject.toml names in the versions of
requirements.lock, and writes the commands `manor`, `manor-oci` and `containerd-shim-manor-v2`. Wheels
are kept in the cache, so the second checkout needs no network. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script, before there is a package path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.harness.paths import CHECKOUT, VENV, cache_dir
from tests.harness.tools import ToolError, run, say

OLDEST = (3, 11)
ABOUT = (
    "import sys, os; print(sys.implementation.name, *sys.version_info[:3], sys.version_info[3], "
    "os.path.realpath(sys._base_executable))"
)


class Interpreter:
    """A real CPython: the path of its program and its version."""

    def __init__(self, path: Path, version: tuple[int, int, int]) -> None:
        self.path = path
        self.version = version

    @property
    def minor(self) -> tuple[int, int]:
        """(3, 11) of 3.11.7."""
        return self.version[:2]

    def __str__(self) -> str:
        return ".".join(map(str, self.version))


def examine(candidate: Path) -> Interpreter | None:
    """Ask a program what it is. None unless it is a released CPython that is new enough."""
    try:
        done = subprocess.run(
            [candidate, "-ISc", ABOUT], capture_output=True, text=True, timeout=20, check=False
        )
    except OSError:
        return None
    words = done.stdout.split(maxsplit=5)
    if done.returncode != 0 or len(words) != 6 or words[0] != "cpython" or words[4] != "final":
        return None
    version = (int(words[1]), int(words[2]), int(words[3]))
    return Interpreter(Path(words[5].strip()), version) if version >= OLDEST else None


def _candidates() -> list[Path]:
    """Programs that may be interpreters, the one `python3` means first."""
    names = ["python3"] + [f"python3.{minor}" for minor in range(OLDEST[1], 30)]
    found = [Path(path) for name in names if (path := shutil.which(name))]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found += sorted(pyenv.glob("3.*/bin/python3"))
    for place in ("/usr/bin", "/usr/local/bin"):
        found += sorted(Path(place).glob("python3.[0-9]*[0-9]"))
    return found


def interpreters() -> list[Interpreter]:
    """One CPython of each version from 3.11 on that the machine has; the first is the project's own.

    That is $MANOR_PYTHON, or the newest: from 3.12 on a warden's objects can be immortal, which halves the
    memory that each shim has to itself (`runtime/linux/sharing.py`).
    """
    chosen: dict[tuple[int, int], Interpreter] = {}
    for candidate in _candidates():
        interpreter = examine(candidate)
        if interpreter is not None:
            chosen.setdefault(interpreter.minor, interpreter)
    if not chosen:
        raise ToolError("no CPython 3.11 or newer on this machine")
    own = chosen[max(chosen)]
    if wanted := os.environ.get("MANOR_PYTHON"):
        named = examine(Path(wanted))
        if named is None:
            raise ToolError(f"MANOR_PYTHON={wanted} is no released CPython 3.11 or newer")
        own = named
    return [own] + [other for minor, other in sorted(chosen.items()) if minor != own.minor]


def _names(extra: str) -> list[str]:
    """The requirements of the project itself and of one of its extras, as pyproject.toml has them."""
    import tomllib

    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names: list[str] = list(project["dependencies"])
    for name in project["optional-dependencies"][extra]:
        names += _names("unit") if name == "manor[unit]" else [name]
    return sorted(set(names))


def _install(python: Path, names: list[str]) -> None:
    """Install by the lock, from the cache of wheels if they are all there, else from the index."""
    wheels = cache_dir() / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    lock = ["-c", str(CHECKOUT / "requirements.lock")]
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-q"]
    offline = [*pip, "install", "--no-index", "--find-links", str(wheels), *lock, *names]
    try:
        run(offline)
    except ToolError:
        say(f"download {len(names)} Python packages and what they need for {python}")
        run([*pip, "download", "--only-binary", ":all:", "-d", str(wheels), *lock, *names])
        run(offline)


def _stamp(interpreter: Interpreter, names: list[str]) -> str:
    lock = (CHECKOUT / "requirements.lock").read_bytes()
    return hashlib.sha256(
        b"\0".join([lock, str(interpreter.path).encode(), *map(str.encode, names)])
    ).hexdigest()


def environment(directory: Path, interpreter: Interpreter, extra: str) -> Path:
    """Make a virtual environment and fill it, unless it is as wanted already. Returns its Python."""
    python = directory / "bin" / "python"
    names = _names(extra)
    stamp = directory / ".manor-stamp"
    wanted = _stamp(interpreter, names)
    if stamp.exists() and stamp.read_text(encoding="ascii") == wanted and python.exists():
        return python
    stamp.unlink(missing_ok=True)
    present = examine(python)
    if present is None or present.path != interpreter.path:
        say(f"make {directory} with CPython {interpreter}")
        _make(directory, interpreter)
    _install(python, names)
    stamp.write_text(wanted, encoding="ascii")
    return python


def _make(directory: Path, interpreter: Interpreter) -> None:
    """Run `python -m venv`. Debian keeps the module's heart in a package of its own."""
    command = [str(interpreter.path), "-m", "venv", "--clear", str(directory)]
    try:
        run(command)
    except ToolError:
        if (
            not str(interpreter.path).startswith("/usr/bin/")
            or os.geteuid() != 0
            or not shutil.which("apt-get")
        ):
            raise
        run(["apt-get", "update", "-q"])
        package = f"python{interpreter.minor[0]}.{interpreter.minor[1]}-venv"
        run(
            ["apt-get", "install", "-y", "-q", "--no-install-recommends", package],
            DEBIAN_FRONTEND="noninteractive",
        )
        run(command)


def write_commands(python: Path) -> None:
    """Put the checkout on the environment's path and write its commands."""
    (site,) = VENV.glob("lib/python3.*/site-packages")
    (site / "manor.pth").write_text(f"{CHECKOUT}\n", encoding="utf-8")
    command = VENV / "bin" / "manor"
    command.write_text(
        f"#!{python}\nimport sys\n\nfrom manor.__main__ import main\n\nsys.exit(main())\n", encoding="utf-8"
    )
    command.chmod(0o755)
    if (CHECKOUT / "shim" / "install.py").exists():
        run([str(python), "-m", "shim.install", str(VENV / "bin")])


def ensure() -> None:
    """Make `.venv` ready to use by hand."""
    python = environment(VENV, interpreters()[0], "dev")
    write_commands(python)


def unit_environments() -> list[Path]:
    """A Python with the tests' requirements for each interpreter of the machine, the project's own first."""
    own, *others = interpreters()
    pythons = [environment(VENV, own, "dev")]
    for other in others:
        directory = cache_dir() / "python" / f"{other.minor[0]}.{other.minor[1]}"
        pythons.append(environment(directory, other, "unit"))
    return pythons


def main(arguments: list[str]) -> int:
    """Without an argument make `.venv`; with `--unit` make all environments and print their Pythons."""
    try:
        if arguments == ["--unit"]:
            for python in unit_environments():
                print(python)
        else:
            ensure()
    except ToolError as error:
        print(f"venv: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
