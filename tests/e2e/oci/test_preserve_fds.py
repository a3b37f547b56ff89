"""Descriptors that a program is to have besides its standard ones: --preserve-fds and LISTEN_FDS."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.oci.conftest import Done, Oci

_LIST = "for n in /proc/self/fd/*; do [ ${n##*/} -gt 2 ] && readlink $n; done | grep -v ^/proc; :"


def _with_fds(oci: Oci, numbers: tuple[int, ...], *words: str | Path, env: str = "") -> Done:
    """Run the command with exactly these descriptors besides the standard ones, each open on a file of its own."""
    for number in numbers:
        (oci.directory / f"file{number}").write_text(f"content {number}\n")
    opened = " ".join(f"{number}<{oci.directory}/file{number}" for number in numbers)
    command = " ".join(f"'{word}'" for word in oci.words(*words))
    return oci.run(["sh", "-c", f"{env} exec {command} {opened}"], timeout_s=30)


@pytest.mark.parametrize("how", ["run", "exec"])
def test_they_have_the_same_numbers_inside(oci: Oci, how: str) -> None:
    words: tuple[str | Path, ...]
    if how == "run":
        bundle = oci.bundle("sh", "-c", "cat <&3; cat <&4")
        words = ("run", "--preserve-fds", "2", "-b", bundle.path, "c")
    else:
        words = ("exec", "--preserve-fds", "2", oci.started(), "sh", "-c", "cat <&3; cat <&4")
    done = _with_fds(oci, (3, 4), *words)
    assert done.code == 0, done.stderr
    assert done.stdout == "content 3\ncontent 4\n"


@pytest.mark.parametrize("how", ["run", "exec"])
def test_no_others_come_along(oci: Oci, how: str) -> None:
    words: tuple[str | Path, ...]
    if how == "run":
        bundle = oci.bundle("sh", "-c", _LIST)
        words = ("run", "--preserve-fds", "1", "-b", bundle.path, "c")
    else:
        words = ("exec", "--preserve-fds", "1", oci.started(), "sh", "-c", _LIST)
    done = _with_fds(oci, (3, 4, 5), *words)
    assert done.code == 0, done.stderr
    seen = [line for line in done.stdout.split() if "file" in line or "pipe" in line or "socket" in line]
    assert len(seen) == 1
    assert seen[0].endswith("/file3")


def test_without_the_option_there_are_none(oci: Oci) -> None:
    bundle = oci.bundle("sh", "-c", _LIST)
    done = _with_fds(oci, (3, 4, 5), "run", "-b", bundle.path, "c")
    assert (done.code, done.stdout) == (0, "")


def test_a_created_container_keeps_them_until_it_is_started(oci: Oci) -> None:
    bundle = oci.bundle("sh", "-c", "cat <&3 > /tmp/out; cat <&4 >> /tmp/out")
    done = _with_fds(oci, (3, 4), "create", "--preserve-fds", "2", "-b", bundle.path, "c")
    assert done.code == 0, done.stderr
    oci.ok("start", "c")
    oci.await_status("c", "stopped")
    assert (bundle.rootfs / "tmp/out").read_text() == "content 3\ncontent 4\n"


def test_many_are_possible(oci: Oci) -> None:
    bundle = oci.bundle("sh", "-c", "for n in 3 4 5 6 7 8 9; do cat <&$n; done")
    done = _with_fds(oci, tuple(range(3, 10)), "run", "--preserve-fds", "7", "-b", bundle.path, "c")
    assert done.stdout == "".join(f"content {number}\n" for number in range(3, 10))


@pytest.mark.parametrize("how", ["run", "run -d", "create", "exec"])
def test_one_that_is_not_open_is_named(oci: Oci, how: str) -> None:
    name = oci.started() if how == "exec" else "c"
    words: tuple[str, ...] = ("exec", "--preserve-fds", "20", name, "true")
    if how != "exec":
        bundle = oci.bundle("true")
        words = (*how.split(), "--preserve-fds", "20", "-b", str(bundle.path), name)
    done = _with_fds(oci, (3,), *words)
    assert done.code == (255 if how == "exec" else 1)
    assert "unable to stat preserved-fd " in done.error
    if oci.is_manor:  # runc takes what it has opened itself for ours
        assert "preserved-fd 1 (of 20)" in done.error
    if how != "exec":
        assert oci("state", "c").code == 1


@pytest.mark.manor_only(reason="runc hands its own descriptors on where the caller's are not open")
@pytest.mark.parametrize("options", [["--log", "log"], []])
def test_a_descriptor_of_ours_is_never_taken_for_one_of_the_callers(oci: Oci, options: list[str]) -> None:
    bundle = oci.bundle("true")
    words = (*options, "run", "--preserve-fds", "1", "-b", str(bundle.path), "c")
    done = _with_fds(oci, (), *words)
    assert done.code == 1
    assert "unable to stat preserved-fd 0 (of 1)" in done.stderr


def test_passed_sockets_come_with_their_count_and_a_pid(oci: Oci) -> None:
    script = "echo $LISTEN_FDS $LISTEN_PID $$; cat <&3; cat <&4"
    bundle = oci.bundle("sh", "-c", script)
    done = _with_fds(
        oci,
        (3, 4),
        "run",
        "-b",
        bundle.path,
        "c",
        env="export LISTEN_FDS=2 LISTEN_PID=$$ LISTEN_FDNAMES=a:b;",
    )
    assert done.code == 0, done.stderr
    assert done.stdout == "2 1 1\ncontent 3\ncontent 4\n"


def test_passed_and_preserved_go_together(oci: Oci) -> None:
    bundle = oci.bundle("sh", "-c", f"echo $LISTEN_FDS; cat <&3; cat <&4; {_LIST}")
    done = _with_fds(
        oci,
        (3, 4, 5),
        *("run", "--preserve-fds", "1", "-b", bundle.path, "c"),
        env="export LISTEN_FDS=1 LISTEN_PID=$$;",
    )
    lines = done.stdout.splitlines()
    assert lines[:3] == ["1", "content 3", "content 4"]
    assert not [line for line in lines[3:] if line.endswith("file5")]


@pytest.mark.parametrize(
    "env", ["export LISTEN_FDS=1 LISTEN_PID=1;", "export LISTEN_FDS=x LISTEN_PID=$$;", "export LISTEN_FDS=1;"]
)
def test_what_was_passed_to_somebody_else_is_not_taken(oci: Oci, env: str) -> None:
    bundle = oci.bundle("sh", "-c", f"echo fds:$LISTEN_FDS; {_LIST}")
    done = _with_fds(oci, (3,), "run", "-b", bundle.path, "c", env=env)
    assert (done.code, done.stdout) == (0, "fds:\n")
