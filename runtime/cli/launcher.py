"""The program `manor-oci`, which `python -m shim.install` compiles and writes: the command, started fast.

A command pays for its imports each time. So the installer puts the compiled code of the whole runtime into one
file, and here modules are taken from it, by their place in it: half the time of looking for each in a directory.
A source that has changed since goes before it. Garbage is not collected: the command has ended before that pays.
"""

from __future__ import annotations

import gc
import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    # place and length in the file, whether it is a package, its source with time and size
    Entry = tuple[int, int, bool, str, int, int]

CODE = ""  # the directory that holds our packages
LIBRARIES = ""  # and the one with those that are not ours
BUNDLE = ""  # the file of compiled code

_INDEX_BYTES = 1 << 16  # the index fits in, the code does not


class Bundle:
    """Finds and loads the modules that are in the file; an entry of sys.meta_path."""

    def __init__(self, path: str) -> None:
        self._fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
        head = posix.read(self._fd, _INDEX_BYTES)
        self._start = 4 + int.from_bytes(head[:4], sys.byteorder)
        self._index: dict[str, Entry] = marshal.loads(head[4 : self._start])  # noqa: S302 -- written by the installer, as this is

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        """A spec for `name`, if it is in here and its source is still the one that was compiled."""
        entry = self._index.get(name)
        if entry is None:
            return None
        _place, _length, is_package, source, changed_ns, size = entry
        try:
            status = posix.stat(source)
        except OSError:
            return None
        if (status.st_mtime_ns, status.st_size) != (changed_ns, size):
            return None
        make: Any = type(sys.__spec__)  # importlib.machinery has it too, and must be imported
        spec: ModuleSpec = make(name, self, origin=source, is_package=is_package)
        if spec.submodule_search_locations is not None:  # for those that have changed
            spec.submodule_search_locations.append(source.rpartition("/")[0])
        return spec

    def create_module(self, _spec: ModuleSpec) -> ModuleType | None:
        """The ordinary kind of module."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Run the code of `module`."""
        place, length = self._index[module.__name__][:2]
        code = marshal.loads(posix.pread(self._fd, length, self._start + place))  # noqa: S302
        exec(code, vars(module))  # noqa: S102 -- what importing is


def main() -> int:
    """Run the command line of this process."""
    gc.disable()
    try:
        sys.meta_path.insert(0, Bundle(BUNDLE))
    except OSError:
        pass  # not there any more: the modules themselves will do
    sys.path += [CODE, LIBRARIES]
    __import__("runtime.cli")
    code: int = sys.modules["runtime.cli"].main()
    return code


if __name__ == "__main__":
    posix._exit(main())  # noqa: SLF001 - os._exit; taking the interpreter down costs 1 ms
