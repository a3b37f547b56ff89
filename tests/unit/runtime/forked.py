"""Run a piece of a test in a child of its own, where it may drop what the test still needs."""

from __future__ import annotations

import json
import os
import traceback
from typing import TYPE_CHECKING, Any

import pytest

from runtime.linux import constants as c
from runtime.linux.process import unshare

if TYPE_CHECKING:
    from collections.abc import Callable

EXIT_BY_SIGNAL = 128


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns (as JSON has it) from a forked child; its failure, with traceback, as AssertionError."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer: dict[str, Any] = {"value": work()}
        except BaseException:
            answer = {"failure": traceback.format_exc()}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        text = stream.read()
    status = os.waitpid(pid, 0)[1]
    if not text:
        if os.WIFSIGNALED(status):
            return EXIT_BY_SIGNAL + os.WTERMSIG(status)
        raise AssertionError(f"the child ended with {os.WEXITSTATUS(status)} and said nothing")
    answer = json.loads(text)
    if "failure" in answer:
        raise AssertionError(answer["failure"])
    return answer["value"]


def status_of_self() -> dict[str, str]:
    """/proc/self/status as a mapping."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as stream:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in stream)}


def enter_user_namespace(more: int = 0) -> None:
    """Become root of a new user namespace (and enter new ones of `more`), which takes no privilege."""
    uid, gid = os.getuid(), os.getgid()
    unshare(c.CLONE_NEWUSER | more)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as stream:
            stream.write(text)


def _may_make_user_namespaces() -> bool:
    try:
        in_child(enter_user_namespace)
    except AssertionError:
        return False
    return True


needs_user_namespaces = pytest.mark.skipif(
    not _may_make_user_namespaces(), reason="this machine does not let us make user namespaces"
)
