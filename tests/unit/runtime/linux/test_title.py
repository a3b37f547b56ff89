"""The command line that a process shows, longer and shorter than the one it was executed with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runtime.linux import title

CHECKOUT = Path(__file__).resolve().parents[4]
LONG = [b"containerd-shim-manor-v2", b"-id", b"x" * 3000, b""]
SHORT = [b"a", b"bc"]


def shown(*calls: str, prepare: str = "") -> list[list[bytes]]:
    """What /proc/self/cmdline holds after each of `calls`."""
    source = f"import sys; sys.path.insert(0, {str(CHECKOUT)!r})\n{prepare}\n"
    source += "from runtime.linux import title\nfound = []\n"
    for call in calls:
        source += f"title.{call}\nfound.append(open('/proc/self/cmdline', 'rb').read())\n"
    done = subprocess.run([sys.executable, "-c", source + "print(found)"], capture_output=True, check=True)
    return [text.split(b"\0") for text in eval(done.stdout)]


@pytest.fixture
def _movable() -> None:
    if not title.movable():
        pytest.skip("this kernel has no CONFIG_CHECKPOINT_RESTORE")


@pytest.mark.usefixtures("_movable")
def test_a_title_of_any_length_replaces_the_command_line() -> None:
    long, short = shown(f"set_title({LONG})", f"set_title({SHORT})")
    assert long == [*LONG, b""]
    assert short == [*SHORT, b""]


@pytest.mark.usefixtures("_movable")
def test_a_process_whose_heap_is_a_file_has_a_title_as_well() -> None:
    """The kernel takes no arguments from mapped files, so they have a place of their own."""
    (found,) = shown(
        f"set_title({LONG})", prepare="from runtime.linux import image; image.begin(); image.seal()"
    )
    assert found == [*LONG, b""]


def test_where_it_cannot_be_moved_the_old_one_is_overwritten_and_never_more_than_it() -> None:
    room = len(sys.executable) + len("-c")
    short, long = shown(f"_overwrite({b'a' * 8!r})", "_overwrite(b'y' * 1_000_000)")
    assert short[0] == b"a" * 8
    assert len(long[0]) > room
    assert set(long[0]) == set(b"y")
    assert set(b"".join(long[1:])) == set()


def test_the_fallback_is_taken_where_the_kernel_refuses() -> None:
    refuse = "_move = lambda text: (_ for _ in ()).throw(OSError(22, 'Invalid argument'))"
    (_before, after) = shown(refuse, "set_title([b'manor', b'x'])")
    assert after[:2] == [b"manor", b"x"]
    assert set(b"".join(after[2:])) == set()
