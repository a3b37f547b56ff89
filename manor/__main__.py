"""`manor VERB …`: finds the verb and hands it the rest of the command line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from manor import checkout, oci, trace
from runtime.version import VERSION


@dataclass(frozen=True)
class Verb:
    """What a verb is for, and the function that does it; it returns the exit code."""

    summary: str
    run: Callable[[Sequence[str]], int]


def _ps(arguments: Sequence[str]) -> int:
    from manor import ps  # a shim's modules come with it, which no other verb waits for

    return ps.main(arguments)


def _leaks(arguments: Sequence[str]) -> int:
    from manor import leaks

    return leaks.main(arguments)


VERBS = {
    "demo": Verb("watch a pod from run to remove, through a containerd of its own", checkout.demo),
    "bench": Verb("measure Manor beside runc", checkout.bench),
    "oci": Verb("run containers from bundles: runc's verbs and options", oci.main),
    "ps": Verb("show pods, containers and execs of this node, with stage and age", _ps),
    "leaks": Verb("show what nobody owns on this node, and remove it", _leaks),
    "trace": Verb("show where the time of a start went", trace.main),
}


def usage() -> str:
    """What there is to type."""
    lines = ["usage: manor VERB [OPTION …]", ""]
    lines += [f"  {name:<8} {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb that the command line names. 2 if there is none of that name.

    Where the reader of what it prints has left, as `head` does, 141 as from any program that SIGPIPE ends.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] in ("-v", "--version"):
        print(f"manor {VERSION}")
        return 0
    verb = VERBS.get(words[0])
    if verb is None:
        print(f"manor: no verb {words[0]!r}\n\n{usage()}", file=sys.stderr)
        return 2
    try:
        code = verb.run(words[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, sys.stdout.fileno())  # what is buffered still is flushed when the interpreter ends
        os.close(nowhere)
        return 128 + signal.SIGPIPE
    return code


if __name__ == "__main__":
    sys.exit(main())
