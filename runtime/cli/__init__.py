"""`manor-oci`: the runtime as a command, with runc's verbs, options, exit codes and texts.

    command    from words to a verb, from failures to exit codes
    arguments  the parser; Option, Verb, Call (pure)          settings   the options before the verb
    verbs      which verb is in which module                  help       help texts, from the same tables
    logs       --log, and what is told on standard error      output     standard output, JSON in Go's layouts
    inspect    state, list        processes  ps               lifecycle  kill, delete, pause, resume
    update  events  spec  features  create  start  run  exec  explain  one verb each
    host       the machine and the containers below the root  status  a container's, without loading operations
    launch     what create and run share                      exec_process  what an exec is to run (pure)
    foreground, relays, terminal, notify, handover            a process that has been started, and its caller
    stats, oom_watch  for events                              explain_rootfs, explain_cgroup  for explain
    launcher   the program itself: starts all this fast

A module of a verb is imported when that verb was typed. Nothing here is loaded by a shim.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "manor-oci"
# Verbs that let a process of theirs, or themselves, into a container's namespaces.
SEALED_VERBS = frozenset(("create", "exec", "run", "start"))


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Run the verb that `argv` (without the program's name) asks for; the exit code."""
    words = sys.argv[1:] if argv is None else argv
    fill_standard_streams()
    unsealed = ensure_sealed(words)
    __import__("runtime.cli.command")
    command = sys.modules["runtime.cli.command"]
    if unsealed:
        command.logs.log.note(unsealed)
    code: int = command.main(words, program)
    return code


def fill_standard_streams() -> None:
    """Open /dev/null for what of 0, 1 and 2 is closed: else the next file of ours would be a standard stream."""
    while (number := os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


def ensure_sealed(words: Sequence[str]) -> str:
    """Go on from a sealed copy of the interpreter where the verb needs it, which can mean: executed anew.

    A container's root must not find the host's Python behind /proc/PID/exe (CVE-2019-5736). This comes first of
    all, because what was imported may have to be imported again; so the verb is not known yet, and a word that
    reads like one is enough. Where memfds cannot be executed (vm.memfd_noexec=2) we go on as we are: the reason,
    else "".
    """
    if SEALED_VERBS.isdisjoint(words):
        return ""
    __import__("runtime.stages.graft")
    sealed = sys.modules["runtime.stages.graft"].ensure_sealed()
    return "" if sealed.sealed else f"the interpreter is {sealed}"
