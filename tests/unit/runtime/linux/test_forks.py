"""A clone between the interpreter's own fork hooks."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from runtime.linux import process

# Of every number of objects that may be made before the next collection, one has that come within the clone.
CLONE_BETWEEN_COLLECTIONS = """
import gc, os, signal, threading
from runtime.linux.process import clone3

class Holder:
    pass

for more in range(1, 60):
    gc.set_threshold(0)
    gc.collect()
    holder = Holder()
    holder.itself = holder
    holder.thread = threading.Thread(target=int)
    holder.thread.start()
    holder.thread.join()
    holder = None
    gc.set_threshold(gc.get_count()[0] + more, 1, 1)
    pid, pidfd = clone3(0, signal.SIGCHLD)
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(pidfd)
print("done")
"""


def test_what_a_collection_would_end_does_not_stop_a_clone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLONE_BETWEEN_COLLECTIONS],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "done\n"


@pytest.mark.parametrize("enabled", [True, False])
def test_a_clone_leaves_collections_as_they_were(enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    within: list[bool] = []

    def clone_now() -> int:
        within.append(gc.isenabled())
        return 1

    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        process._as_fork(clone_now)
        assert (within, gc.isenabled()) == ([False], enabled)
        with pytest.raises(OSError, match="no"):
            process._as_fork(_refused)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


def _refused() -> int:
    raise OSError("no")
