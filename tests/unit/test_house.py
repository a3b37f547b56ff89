"""The rules of the house, read from the source: who may import whom, what a shim may load, how big things may grow.

Rules that a linter has are in pyproject.toml; these are our own. Each failure names the place.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("runtime", "shim", "cri", "manor", "demo", "benchmarks", "tests")

# What each package may import of ours.
MAY_IMPORT = {
    "runtime": {"runtime"},
    "shim": {"shim", "runtime"},
    "cri": {"cri", "shim.api", "shim.ttrpc"},
    "manor": {"manor", "cri", "shim", "runtime"},
}
# Inside runtime: a module may import what stands on its own floor or below.
FLOORS = (
    ("cli",),
    ("operations", "features"),
    ("stages",),
    ("terms",),
    ("container", "payload", "bundle"),
    (
        *("rootfs", "cgroups", "namespaces", "credentials", "seccomp", "seccomp_enosys", "labels", "limits"),
        *("affinity", "sysctls", "terminal", "hooks", "user_mapping", "rdt", "net_devices", "seccomp_notify"),
    ),
    ("spec", "state", "status"),
    ("linux",),
    ("errors", "record", "waiting", "trace", "undo", "faults", "version"),
)
# Programs of their own in shim/: never loaded by a warden or by what it forks. And what brings in a library of D-Bus:
# loaded where systemd makes the cgroups alone.
BESIDE_THE_SHIM = ("shim/install.py", "shim/link_order.py", "shim/scribe", "runtime/cgroups/bus.py")
# What a shim may load of the standard library: C modules, and what the interpreter has loaded already.
LIGHT = {
    *("__future__", "array", "errno", "fcntl", "gc", "marshal", "os", "posix", "resource", "select", "stat"),
    *(
        "struct",
        "sys",
        "termios",
        "time",
        "_heapq",
        "_imp",
        "_json",
        "_sha2",
        "_sha256",
        "_signal",
        "_socket",
    ),
    "_struct",
}
HEAVY = (
    *("asyncio", "collections", "contextlib", "dataclasses", "enum", "functools", "grpc", "google", "json"),
    *("logging", "opentelemetry", "pathlib", "psutil", "pyroute2", "re", "selectors", "signal", "socket"),
    *("subprocess", "traceback", "typing"),
)
# Of a warden that has all imported and a shim in which nothing has happened yet; the bare interpreter has 2.5 MB. What
# a shim has after it has worked is held by tests/e2e/footprint, to 5 MB.
WARDEN_ANONYMOUS_MB = 5.0
WARDEN_IMAGE_MB = 6.0  # what has been imported, which all shims of a node share
SYSTEMD_IMAGE_MB = 2.5  # more of it where systemd makes the cgroups
# More still where typing and what else a library of D-Bus wants are compiled while they are loaded: Debian's own
# CPython 3.11.2 has none of its library compiled by -OO; the image has 9.4 to 9.8 MB with systemd's part, 4.5 without.
UNCOMPILED_MB = 2.0
LONGEST_MODULE = 450  # but for unit tests, which are lists of cases
LAUNCHER = "shim/launcher.py"
LONGEST_FUNCTION = 60


@dataclass(frozen=True)
class Import:
    """One import that a running program really does: those for type checkers are left out."""

    module: str
    line: int
    inside_function: bool


def sources(*packages: str) -> list[Path]:
    """The modules of some packages, without generated ones."""
    return [
        path
        for package in packages
        for path in sorted((ROOT / package).rglob("*.py"))
        if not path.name.endswith(("_pb2.py", "_pb2_grpc.py"))
    ]


def name(path: Path) -> str:
    """The path of a module as failures show it."""
    return str(path.relative_to(ROOT))


def shim_sources() -> list[Path]:
    """What a shim process consists of."""
    return [path for path in sources("runtime", "shim") if not name(path).startswith(BESIDE_THE_SHIM)]


def _for_type_checkers(node: ast.AST) -> bool:
    if not isinstance(node, ast.If):
        return False
    test = node.test
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def imports(path: Path) -> Iterator[Import]:
    """Every import of a module, in functions too."""

    def walk(node: ast.AST, inside_function: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, inside_function) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield Import(child.module or "", child.lineno, inside_function)
            elif isinstance(child, ast.If) and _for_type_checkers(child):
                for other in child.orelse:
                    yield from walk(other, inside_function)
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, inside_function or function)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


def offences(found: Iterator[str]) -> str:
    """Failures, one a line; empty if there are none."""
    return "\n".join(found)


def test_packages_import_only_what_stands_below_them() -> None:
    def found() -> Iterator[str]:
        ours = set(PACKAGES)
        for package, allowed in MAY_IMPORT.items():
            for path in sources(package):
                for item in imports(path):
                    if item.module.split(".")[0] not in ours:
                        continue
                    if not any(item.module == one or item.module.startswith(f"{one}.") for one in allowed):
                        yield f"{name(path)}:{item.line} imports {item.module}"

    assert not offences(found())


def floor(module: str) -> int | None:
    """The floor of a module of runtime, the ground floor being 0; None for the package itself."""
    words = module.split(".")
    if words[0] != "runtime" or words[1:] in ([], ["__init__"]):
        return None
    for height, names in enumerate(reversed(FLOORS)):
        if words[1] in names:
            return height
    raise AssertionError(f"{module} has no floor: give it one in FLOORS")


def test_inside_runtime_nobody_imports_from_a_floor_above() -> None:
    def found() -> Iterator[str]:
        for path in sources("runtime"):
            own = floor(".".join(path.relative_to(ROOT).with_suffix("").parts))
            for item in imports(path):
                other = floor(item.module)
                if own is not None and other is not None and other > own:
                    yield f"{name(path)}:{item.line} imports {item.module}, which stands above it"

    assert not offences(found())


def test_a_shim_loads_only_light_modules() -> None:
    def found() -> Iterator[str]:
        for path in shim_sources():
            for item in imports(path):
                top = item.module.split(".")[0]
                if top in LIGHT or top in ("runtime", "shim"):
                    continue
                if top == "_ctypes" and name(path) == "runtime/linux/ffi.py":
                    continue
                yield f"{name(path)}:{item.line} imports {item.module}"

    assert not offences(found())


def test_a_package_of_the_runtime_loads_nothing_of_ours() -> None:
    packages = [path for path in sources("runtime") if path.name == "__init__.py"]
    assert not offences(
        f"{name(path)}:{item.line} imports {item.module}"
        for path in packages
        for item in imports(path)
        if item.module.split(".")[0] in PACKAGES
    )


def test_nothing_in_a_shim_is_imported_late() -> None:
    """A late import is memory that no other shim shares, read from files that an upgrade may have replaced.

    The launcher may: where there is no warden to be had, it becomes the shim by itself.
    """

    def found() -> Iterator[str]:
        for path in shim_sources():
            for item in imports(path):
                if item.inside_function and name(path) != LAUNCHER:
                    yield f"{name(path)}:{item.line} imports {item.module} inside a function"

    assert not offences(found())


def test_no_tuple_in_a_shim_is_made_of_a_generator() -> None:
    """It begins with ten elements and is cut. Of each size CPython keeps up to 2,000 tuples for who wants one again,
    and one that was cut came from elsewhere: with two of three and one of nine for each exec they had 290 KB of a shim.
    """

    def is_made_of_one(call: ast.Call) -> bool:
        if len(call.args) != 1:
            return False
        (given,) = call.args
        if isinstance(given, ast.Starred):  # the arguments are a tuple
            return isinstance(given.value, ast.GeneratorExp)
        is_tuple = isinstance(call.func, ast.Name) and call.func.id == "tuple"
        return is_tuple and isinstance(given, ast.GeneratorExp)

    def found() -> Iterator[str]:
        for path in shim_sources():
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and is_made_of_one(node):
                    yield f"{name(path)}:{node.lineno} wants a list: tuple([… for …]), f(*[… for …])"

    assert not offences(each for each in found() if not each.startswith("runtime/cli/"))


def test_only_the_stages_and_the_warden_fork() -> None:
    homes = ("runtime/stages/", "runtime/linux/", "shim/warden.py", "shim/launcher.py", *BESIDE_THE_SHIM)

    def found() -> Iterator[str]:
        for path in sources("runtime", "shim"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and node.attr in ("fork", "forkpty", "posix_spawn"):
                    if not name(path).startswith(homes):
                        yield f"{name(path)}:{node.lineno} {node.attr}"

    assert not offences(found())


def test_no_module_and_no_function_outgrows_its_idea() -> None:
    def found() -> Iterator[str]:
        for path in sources(*PACKAGES):
            text = path.read_text(encoding="utf-8")
            if (length := text.count("\n")) > LONGEST_MODULE and not name(path).startswith("tests/unit/"):
                yield f"{name(path)} has {length} lines"
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                    if (length := node.end_lineno - node.lineno + 1) > LONGEST_FUNCTION:
                        yield f"{name(path)}:{node.lineno} {node.name} has {length} lines"

    assert not offences(found())


def test_nothing_is_left_to_do_and_nothing_belongs_to_one_machine() -> None:
    pattern = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|/(?:work|tmp/t)/|NotImplementedError")

    def found() -> Iterator[str]:
        for path in sources(*PACKAGES):
            if path == Path(__file__):
                continue
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if pattern.search(line):
                    yield f"{name(path)}:{number} {line.strip()}"

    assert not offences(found())


def test_every_typed_package_says_so() -> None:
    assert [package for package in MAY_IMPORT if not (ROOT / package / "py.typed").exists()] == []


def test_make_clean_takes_away_all_that_git_ignores() -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nclean:")[2]
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert [each for each in ignored if each.rstrip("/") not in recipe.split()] == []


def named_in_the_map(package: Path) -> list[str]:
    """The names in a package's map: a line of it is indented by four, and has them before two blanks."""
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    return [each for line in re.findall(r"^ {4}(\S.*?) {2}", text, re.MULTILINE) for each in line.split()]


@pytest.mark.parametrize("package", ["runtime", "shim", "tests/harness"])
def test_the_map_of_a_package_names_all_that_is_in_it_and_nothing_else(package: str) -> None:
    there = [path.stem for path in (ROOT / package).glob("*.py") if path.stem != "__init__"]
    there += [
        f"{path.name}/" for path in (ROOT / package).iterdir() if path.is_dir() and path.name != "__pycache__"
    ]
    assert sorted(named_in_the_map(ROOT / package)) == sorted(there)


def packages() -> list[str]:
    """Our own packages, and of the others those that have a map to go by."""
    found = [path.parent for package in MAY_IMPORT for path in (ROOT / package).rglob("__init__.py")]
    found += [ROOT / "benchmarks", ROOT / "tests" / "wire", ROOT / "tests" / "sweeps"]
    return sorted(str(path.relative_to(ROOT)) for path in found)


@pytest.mark.parametrize("package", packages())
def test_who_begins_with_the_docstring_of_a_package_hears_of_every_module(package: str) -> None:
    text = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))) or ""
    there = [
        path.stem for path in (ROOT / package).glob("*.py") if path.stem[0] != "_" and "_pb2" not in path.stem
    ]
    assert sorted(set(there) - set(re.findall(r"\w+", text))) == []


# ---- what really happens, in an interpreter of its own ----


def run_bare(program: str) -> str:
    """Run a program as the launcher runs Python: no environment, no site, no user directories."""
    command = [sys.executable, "-ISBOO", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout


def test_a_shim_has_loaded_nothing_heavy() -> None:
    loaded = set(run_bare("import shim.daemon; print(*sys.modules)").split())
    assert {module for module in loaded if module.split(".")[0] in HEAVY} == set()


@pytest.mark.parametrize("systemd", [False, True])
def test_a_wardens_memory_stays_small(tmp_path: Path, systemd: bool) -> None:
    # From compiled files, as a warden has them: compiling takes memory that is not given back.
    subprocess.run([sys.executable, "-m", "shim.install", str(tmp_path)], check=True, cwd=ROOT)
    told = run_bare(f"""
from runtime.linux import image
image.begin()
from shim import systemd, warden
seal = image.seal
image.seal = lambda: print("image", seal())
systemd.booted_with_systemd = lambda: {systemd}
warden.House("shim.daemon", {sysconfig.get_path("purelib")!r})
assert systemd.available() == {systemd}
print(open("/proc/self/smaps_rollup").read(), flush=True)
""")
    anonymous = re.search(r"^Anonymous: +(\d+) kB", told, re.MULTILINE)
    size = re.search(r"^image (\d+)", told, re.MULTILINE)
    assert anonymous is not None
    assert size is not None
    assert int(anonymous[1]) / 1024 <= WARDEN_ANONYMOUS_MB
    uncompiled = not Path(cache_from_source(os.__file__, optimization=2)).exists()
    more_mb = SYSTEMD_IMAGE_MB + UNCOMPILED_MB * uncompiled if systemd else 0.0
    assert 0 < int(size[1]) / (1 << 20) <= WARDEN_IMAGE_MB + more_mb


def test_the_launcher_loads_built_in_modules_only() -> None:
    allowed = {"__future__", "_socket"} | set(sys.builtin_module_names)
    first = {item.module for item in imports(ROOT / LAUNCHER) if not item.inside_function}
    assert first <= allowed


def test_the_launchers_first_line_is_the_real_interpreter_with_one_cluster_of_flags(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "shim.install", str(tmp_path)], check=True, cwd=ROOT)
    with open(tmp_path / "containerd-shim-manor-v2", "rb") as launcher:
        first = launcher.readline().decode()
    match = re.fullmatch(r"#!(/\S+) -ISB\n", first)
    assert match is not None
    interpreter = Path(match[1])
    assert interpreter == interpreter.resolve(), "a link costs every start a detour"
    assert interpreter.read_bytes()[:4] == b"\x7fELF", "pyenv's shims are scripts"
    assert os.access(interpreter, os.X_OK)


@pytest.mark.parametrize("package", ["runtime", "shim", "cri", "manor"])
def test_every_module_says_what_it_owns(package: str) -> None:
    def found() -> Iterator[str]:
        for path in sources(package):
            if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
                yield name(path)

    assert not offences(found())
