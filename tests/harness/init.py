"""An init for the tests of one run: who loses its parent becomes this process's child, and is reaped when it ends.

`python -m tests.harness.init COMMAND…` runs the command and ends with its code, or with 128 and the signal. What the
machine has for PID 1 may look for ended children every two seconds only, and a PID namespace does not end, nor is a
cgroup empty, before those in it that came from outside are reaped: every delete after an exec that has lost its parent
would take that long. A node's PID 1 reaps at once, and so does this.
"""

from __future__ import annotations

import os
import signal
import sys

from runtime.linux.process import set_child_subreaper


def run(words: list[str]) -> int:
    """Run a command to its end, reap whoever ends meanwhile, and return the code it ended with."""
    set_child_subreaper()
    command = os.posix_spawnp(words[0], words, os.environ)
    signal.signal(signal.SIGTERM, lambda number, _frame: os.kill(command, number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the command as well
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == command:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
