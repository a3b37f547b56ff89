"""`python -m tests.harness.hot_code`: write `shim/hot.py`, which names the code that runs in the shim of a usual pod.

After a change of what a shim does, and root is needed. With `--add` what is in the file stays: a machine has cgroups
of one version, and the other's code is as hot on others.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import textwrap
from pathlib import Path

from shim import hot, install
from shim.version import RUNTIME_NAME
from tests.harness.containerd import VERSIONS, Containerd
from tests.harness.crictl import Crictl
from tests.harness.handlers import MANOR
from tests.harness.paths import CHECKOUT
from tests.harness.registry import BUSYBOX, Registry

LONGEST_LINE = 110
TARGET = CHECKOUT / "shim" / "hot.py"
_HEAD = '''"""The code that runs in the shim of a usual pod, by module: `runtime/linux/packing.py` lays it side by side.

Written by `python -m tests.harness.hot_code`, from a shim that had a container and execs. What is not in it works as
well, and a shim that runs it copies a page more.
"""

from __future__ import annotations

HOT = {
'''


def record() -> set[tuple[str, str]]:
    """Run a pod and what usually goes on in it; module and qualified name of all that ran in its shim."""
    registry = Registry()
    try:
        with tempfile.TemporaryDirectory() as directory:
            shim = install.write_launcher(Path(directory), CHECKOUT, "tests.harness.recording")
            node = Containerd(VERSIONS[-1], registry, shim=shim)
            try:
                _live(Crictl(node))
                found = [path.read_text(encoding="utf-8") for path in node.run_dir.glob("code-*")]
            finally:
                node.close()
    finally:
        registry.close()
    lines = {line for text in found for line in text.splitlines()}
    return {(module, name) for module, _blank, name in (line.partition(" ") for line in lines)}


def _live(crictl: Crictl) -> None:
    crictl.run("pull", BUSYBOX)
    pod = crictl.run_pod(MANOR)
    container = crictl.run_container(pod, ["sleep", "1000"])
    for _ in range(3):
        crictl.execute(container, "sh", "-c", "echo said; echo wrong >&2", sync=True)
    crictl.run("stats", "-a")


def is_there(module: str, name: str) -> bool:
    """Whether `module` has something of that qualified name; of inner functions, what they are in."""
    try:
        place: object = importlib.import_module(module)
        for word in name.partition(".<locals>")[0].split("."):
            place = vars(place)[word]
    except (ImportError, KeyError):
        return False
    return True


def text_of(found: set[tuple[str, str]]) -> str:
    """The module that names them."""
    lines = []
    for module in sorted({module for module, _name in found}):
        names = " ".join(sorted(name for its, name in found if its == module))
        line = f'    "{module}": "{names}",\n'
        if len(line) > LONGEST_LINE:
            wrapped = textwrap.wrap(names, LONGEST_LINE - 12, break_long_words=False, break_on_hyphens=False)
            rows = [f'        "{row} "\n' for row in wrapped[:-1]] + [f'        "{wrapped[-1]}"\n']
            line = f'    "{module}": (\n{"".join(rows)}    ),\n'
        lines.append(line)
    return _HEAD + "".join(lines) + "}\n"


def main() -> int:
    """Record and write."""
    parser = argparse.ArgumentParser(description="write shim/hot.py")
    parser.add_argument("--add", action="store_true", help="keep what is in it and still exists")
    asked = parser.parse_args()
    found = record()
    if asked.add:
        found |= {(module, name) for module, names in hot.HOT.items() for name in names.split()}
    ours = {(module, name) for module, name in found if is_there(module, name)}
    TARGET.write_text(text_of(ours), encoding="utf-8")
    print(f"{RUNTIME_NAME}: {len(ours)} names in {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
