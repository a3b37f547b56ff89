"""tests/vm/vm-run.sh when a guest hangs: when it boots again, what it says.

QEMU and virtiofsd are scripts that play a part, and hear when they are asked to look inside.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

VM_RUN = Path(__file__).parents[2] / "vm" / "vm-run.sh"

# A machine that does what the next line of `script` says.
QEMU = """
for word; do case $word in file,id=con,path=*) run=${word#file,id=con,path=};; esac; done
run=${run%/console} here=${0%/*}
rm -f "$here/hangs"
echo "$1" >>"$here/boots"
say() { echo "[    1.0] $1" >>"$run/console"; }
begin() { echo 1.0 >"$run/ctl/uptime"; }
interrupted() { : >"$here/hangs"; grep inject-nmi "$run/monitor.in" >/dev/null || exec sleep 99; }
read -r story <"$here/script"; sed -i 1d "$here/script"
say "$story"
echo "qemu: $story" >&2
case $story in
  boots) begin; echo 7 >"$run/ctl/rc"; exit;;
  "dies in its boot") exit 1;;
  "dies in the command") begin; exit 1;;
  "hangs in the command") begin; interrupted; say "task:python state:S stack:0 pid:9 ppid:1 flags:0"; exit;;
  "begins at last") interrupted; begin; exit;;
  "hangs in its boot")
    interrupted
    say "Sched Debug Version: v0.11"; say "  .nr_running : 0"
    say "task:kworker/0:1 state:I stack:0 pid:17 ppid:2 flags:0"; say " a_kernel_thread+0x1"
    say "task:systemd state:S stack:0 pid:1 ppid:0 flags:0"; say " ? left_over+0x1"; say " do_epoll_wait+0x1"
    exit;;
  "gets no CPU")
    mkdir -p "$VM_PROC/$$/task/$$"; echo 1 7000000000000 1 >"$VM_PROC/$$/task/$$/schedstat"
    : >"$here/hangs"; until [ -e "$here/looked" ]; do sleep 0.02; done
    begin; echo 7 >"$run/ctl/rc"; exit;;
  "hears nothing") : >"$here/hangs"; exec sleep 99;;
esac
"""
# The watchdog looks when the machine hangs, and has waited long enough.
SLEEP = """
here=${0%/*}
[ "$1" = 1 ] || exec /bin/sleep "$@"
[ ! -e "$here/hangs" ] || : >"$here/looked"
until [ -e "$here/hangs" ]; do /bin/sleep 0.02; done
"""
VIRTIOFSD = """
run=$4
echo "its file server" >&2
exec python3 -c 'import socket as s, sys, time; s.socket(s.AF_UNIX).bind(sys.argv[1]); time.sleep(99)' "$run/fs.sock"
"""


@dataclass
class Machine:
    """A cache with a kernel, and programs that play their part."""

    bin: Path
    cache: Path

    def run(self, *script: str, limit_s: int = 0) -> subprocess.CompletedProcess[str]:
        path = f"{self.bin}:{os.environ['PATH']}"
        (self.bin / "boots").touch()
        (self.bin / "script").write_text("".join(f"{line}\n" for line in script))
        return subprocess.run(
            [VM_RUN, "-b", "0", "-t", str(limit_s), "--", "true"],
            env=os.environ | {"PATH": path, "VM_CACHE": str(self.cache), "VM_PROC": str(self.bin / "proc")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def boots(self) -> int:
        return len((self.bin / "boots").read_text().splitlines())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "bin", tmp_path / "cache")
    made.bin.mkdir()
    parts = {
        "qemu-system-x86_64": QEMU,
        "unshare": VIRTIOFSD,
        "sleep": SLEEP,
        "id": "echo 0",
        "busybox": "cat >/dev/null",
    }
    for name, text in parts.items():
        (made.bin / name).write_text(f"#!/bin/bash\n{text}")
        (made.bin / name).chmod(0o755)
    (made.cache / "cloud" / "initramfs").mkdir(parents=True)
    for name in ("ok", "version", ".kolist"):
        (made.cache / "cloud" / name).touch()
    return made


def test_a_command_that_runs_is_run_once_and_its_status_passed_on(machine: Machine) -> None:
    done = machine.run("boots", "boots")
    assert (done.returncode, done.stderr, machine.boots) == (7, "", 1)


@pytest.mark.parametrize("story", ["hangs in its boot", "hears nothing", "dies in its boot"])
def test_a_boot_that_does_not_reach_the_command_is_tried_once_more(machine: Machine, story: str) -> None:
    done = machine.run(story, "boots")
    assert (done.returncode, machine.boots) == (7, 2)
    for told in (f"[    1.0] {story}\n", f"qemu: {story}\n", "its file server\n"):
        assert told in done.stderr
    assert story == "dies in its boot" or "/task/" in done.stderr.partition("end of threads:\n")[2]
    assert "vm-run.sh: the command has not begun: one more boot\n" in done.stderr


def test_a_second_boot_is_the_last(machine: Machine) -> None:
    done = machine.run("hangs in its boot", "dies in its boot", "boots")
    assert (done.returncode, machine.boots) == (125, 2)


def test_a_hanging_guest_tells_where_its_tasks_wait(machine: Machine) -> None:
    done = machine.run("hangs in its boot", "boots")
    assert "the command had not begun after 0 s, and " in done.stderr
    assert "task:systemd" in done.stderr
    assert "do_epoll_wait" in done.stderr
    for noise in ("left_over", "kworker", "a_kernel_thread", ".nr_running"):
        assert noise not in done.stderr


@pytest.mark.parametrize(
    ("story", "status"),
    [("hangs in the command", 124), ("dies in the command", 125), ("begins at last", 125)],
)
def test_a_command_that_has_begun_is_not_run_again(machine: Machine, story: str, status: int) -> None:
    done = machine.run(story, "boots")
    assert (done.returncode, machine.boots) == (status, 1)
    assert f"[    1.0] {story}\n" in done.stderr


def test_a_hanging_command_tells_where_its_tasks_wait(machine: Machine) -> None:
    done = machine.run("hangs in the command")
    assert "vm-run.sh: timeout after 0 s, and " in done.stderr
    assert "task:python" in done.stderr


def test_what_a_busy_machine_lets_it_wait_does_not_count(machine: Machine) -> None:
    done = machine.run("gets no CPU", limit_s=1000)
    assert (done.returncode, done.stderr, machine.boots) == (7, "", 1)
