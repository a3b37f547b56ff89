"""The program `manor-oci`, which `python -m shim.install` compiles and writes: the command, started fast.

A command pays for its imports each time. So the installer puts the compiled code of the whole runtime into one
file, and here modules are taken from it: those of a verb that is used often all at once, in an order that was found
out beforehand, which takes half the time that importing each of them takes; any other by its place in the file.
A source that has changed since goes before it. Garbage is not collected: the command has ended before that pays.
"""

from __future__ import annotations

import gc
import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    # place and length in the file, whether it is a package, its source with time and size
    Entry = tuple[int, int, bool, str, int, int]
    # place and length in the file, whose code that is
    Group = tuple[int, int, tuple[str, ...]]

CODE = ""  # the directory that holds our packages
LIBRARIES = ""  # and the one with those that are not ours
BUNDLE = ""  # the file of compiled code

COMMAND = "runtime.cli.command"  # imported when the interpreter is sealed
_INDEX_BYTES = 1 << 16  # the index fits in, the code does not


class Bundle:
    """Finds and loads the modules that are in the file; an entry of sys.meta_path."""

    def __init__(self, path: str, words: Sequence[str]) -> None:
        self._fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
        head = posix.read(self._fd, _INDEX_BYTES)
        self._start = 4 + int.from_bytes(head[:4], sys.byteorder)
        orders: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
        self._index: dict[str, Entry]
        self._groups: Sequence[Group]
        self._index, self._groups, orders = marshal.loads(head[4 : self._start])  # noqa: S302 -- written by the installer, as this is
        # The options before the verb are not known yet; a word too many costs time, and one too few does not exist.
        verb = next((word for word in words if word in orders), "")
        first, self._rest = orders.get(verb, ((), ()))
        self.link(first)

    def link(self, order: Sequence[str]) -> None:
        """Run the modules of `order` that have not been: nothing they import is missing then. None if one is stale."""
        modules = sys.modules
        names = [name for name in order if name not in modules]
        if not all(map(self._is_current, names)):
            return
        wanted = set(names)
        code: dict[str, Any] = {}
        for place, length, members in self._groups:
            if not wanted.isdisjoint(members):
                code.update(zip(members, self._code(place, length), strict=True))
        for name in names:
            module = modules[name] = type(sys)(name)
            module.__file__, module.__package__ = self._index[name][3], name
            if self._index[name][2]:
                module.__path__ = [module.__file__.rpartition("/")[0]]
            else:
                module.__package__ = name.rpartition(".")[0]
        for name in names:
            package, _, leaf = name.rpartition(".")
            if package:
                setattr(modules[package], leaf, modules[name])
        for name in names:
            exec(code[name], vars(modules[name]))  # noqa: S102 -- what importing is

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        """A spec for `name`, if it is in here and its source is still the one that was compiled."""
        if name == COMMAND:
            self.link(self._rest)
        entry = self._index.get(name)
        if entry is None or not self._is_current(name):
            return None
        source = entry[3]
        make: Any = type(sys.__spec__)  # importlib.machinery has it too, and must be imported
        spec: ModuleSpec = make(name, self, origin=source, is_package=entry[2])
        if spec.submodule_search_locations is not None:  # for those that have changed
            spec.submodule_search_locations.append(source.rpartition("/")[0])
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The one that was linked just now, or an ordinary one."""
        return sys.modules.get(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Run the code of `module`."""
        if not hasattr(module, "__builtins__"):  # what has run has them
            place, length = self._index[module.__name__][:2]
            exec(self._code(place, length), vars(module))  # noqa: S102

    def _is_current(self, name: str) -> bool:
        _place, _length, _is_package, source, changed_ns, size = self._index[name]
        try:
            status = posix.stat(source)
        except OSError:
            return False
        return (status.st_mtime_ns, status.st_size) == (changed_ns, size)

    def _code(self, place: int, length: int) -> Any:
        return marshal.loads(posix.pread(self._fd, length, self._start + place))  # noqa: S302


def main() -> int:
    """Run the command line of this process."""
    gc.disable()
    sys.path += [CODE, LIBRARIES]
    try:
        sys.meta_path.insert(0, Bundle(BUNDLE, sys.argv[1:]))
    except OSError:
        pass  # not there any more: the modules themselves will do
    __import__("runtime.cli")
    code: int = sys.modules["runtime.cli"].main()
    return code


if __name__ == "__main__":
    posix._exit(main())  # noqa: SLF001 - os._exit; taking the interpreter down costs 1 ms
