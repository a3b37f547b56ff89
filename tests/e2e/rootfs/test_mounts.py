"""Mounts of a container, as its /proc/self/mountinfo and its processes see them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.cgroups.layout import detect_layout
from runtime.errors import StageError
from runtime.linux import constants as c
from runtime.linux import mount as m
from runtime.linux.process import unshare
from runtime.rootfs.copy_up import DEEPEST
from tests.e2e.rootfs.conftest import bind, mount_lines, open_descriptors, options_of, tmpfs
from tests.harness.tools import RUNC_1, ToolError, program
from tests.unit.runtime.forked import enter_user_namespace, in_child

if TYPE_CHECKING:
    from tests.e2e.rootfs.conftest import Canary, Inside
    from tests.e2e.runtime.conftest import Runner
    from tests.harness.bundles import Bundle

BIND_OPTIONS = [
    *(["rbind"], ["rbind", "ro"], ["bind", "rw"], ["rbind", "rprivate", "ro", "nosuid", "nodev"]),
    *(
        ["rbind", "rshared"],
        ["rbind", "rslave", "noexec"],
        ["bind", "noatime"],
        ["bind", "strictatime", "ro"],
    ),
    *(
        ["bind", "nodiratime"],
        ["rbind", "rro"],
        ["bind", "relatime"],
        ["rbind", "private", "rw", "nosymfollow"],
    ),
    *(["bind", "ro", "rw"], ["rbind", "rnosuid", "rnoatime"], ["bind", "suid", "dev", "exec"]),
]
TMPFS_OPTIONS = [
    *(["nosuid"], ["ro", "size=1m"], ["strictatime", "mode=700"], ["noatime", "nodiratime"], ["rshared"]),
    *(["sync", "dirsync", "lazytime"], ["tmpcopyup", "mode=750"], ["rw", "noexec", "nr_inodes=10"], []),
]


def with_many_mounts(config: dict[str, Any], source: Path) -> None:
    mounts = config["mounts"]
    mounts.append({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid"]})
    mounts.append(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "ro"]}
    )
    for number, options in enumerate(BIND_OPTIONS):
        mounts.append(bind(source, f"/binds/{number}", *options))
    mounts.append(bind(source / "file", "/binds/file", "ro"))
    for number, options in enumerate(TMPFS_OPTIONS):
        mounts.append(tmpfs(f"/tmpfs/{number}", *options))
    mounts.append(tmpfs("/tmp"))
    # What is moved into a shared mount is shared, unless it is told otherwise once it is there.
    mounts += [tmpfs("/shared", "rshared"), tmpfs("/shared/no", "private"), tmpfs("/shared/too")]
    config["linux"]["maskedPaths"] += ["/etc/passwd", "/home", "/no/such/path"]
    config["linux"]["readonlyPaths"] += ["/etc", "/no/such/path"]


def comparable(text: str, bundle: Path) -> list[str]:
    """Mountinfo without what differs from run to run: ids, device numbers, peer groups, the bundle's place.

    Masks of files are left out of the comparison: ours are the host's null device, runc's the container's.
    So is the tmpfs that holds v1 hierarchies: ours is read-only where "ro" was asked for. Sorted, because
    mountinfo goes by mount ids, and one of ours is made earlier.
    """
    made = []
    for line in text.splitlines():
        fields = line.split()
        middle = fields.index("-")
        fields[3] = re.sub(f"^.*/{bundle.parent.name}/{bundle.name}(?=/|$)", "", fields[3])
        if fields[3] == "/null" or (fields[4], fields[middle + 1]) == ("/sys/fs/cgroup", "tmpfs"):
            continue
        peers = [field.split(":")[0] for field in fields[6:middle]]
        made.append(" ".join([*fields[3:6], *peers, *fields[middle + 1 :]]))
    return sorted(made)


@pytest.mark.parametrize("readonly", [False, True])
def test_all_mounts_are_what_runc_makes_of_the_same_config(runner: Runner, readonly: bool) -> None:
    try:
        runc = program(RUNC_1, "runc")
    except ToolError as error:
        pytest.skip(str(error))
    source = runner.directory / "source"
    source.mkdir()
    (source / "file").write_text("x")
    found = []
    for engine in ("manor", "runc"):
        bundle = runner.bundle("cat", "/proc/self/mountinfo")
        with_many_mounts(bundle.config, source)
        bundle.config["root"]["readonly"] = readonly
        if engine == "manor":
            output = runner.run(bundle).stdout
        else:
            bundle.write()
            arguments = [str(runc), "--root", str(runner.directory / "runc"), "run", "-b", str(bundle.path)]
            done = subprocess.run([*arguments, bundle.path.name], capture_output=True, text=True, check=True)
            output = done.stdout
        found.append(comparable(output, bundle.path))
    assert len(found[0]) > len(BIND_OPTIONS) + len(TMPFS_OPTIONS)
    assert found[0] == found[1]


@pytest.mark.skipif(
    detect_layout().view().mode == "unified", reason="in v2 it has the whole tree, and finds its own by /proc"
)
def test_without_a_cgroup_namespace_a_container_sees_its_own_cgroups_and_no_others(runner: Runner) -> None:
    bundle = runner.bundle("cat", "/proc/self/mountinfo")
    bundle.config["mounts"].append(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]}
    )
    namespaces = bundle.config["linux"]["namespaces"]
    namespaces[:] = [each for each in namespaces if each["type"] != "cgroup"]
    lines = [line.split() for line in runner.run(bundle).stdout.splitlines()]
    cgroups = [fields for fields in lines if fields[-3].startswith("cgroup")]
    assert cgroups
    assert all(fields[3].startswith(bundle.config["linux"]["cgroupsPath"]) for fields in cgroups)
    assert all("ro" in fields[5].split(",") for fields in cgroups)


def test_a_source_that_is_not_there_is_named(runner: Runner) -> None:
    bundle = runner.bundle("true")
    bundle.config["mounts"].append(bind("/no/such/source", "/data"))
    with pytest.raises(StageError, match=r"mounts\[5\]: source /no/such/source does not exist"):
        runner.create(bundle)


def test_a_root_that_is_not_there_is_named(runner: Runner) -> None:
    bundle = runner.bundle("true")
    bundle.config["root"]["path"] = "nothing"
    with pytest.raises(StageError, match="nothing: .*No such file or directory"):
        runner.create(bundle)


def test_a_root_that_is_a_symlink_is_refused(runner: Runner) -> None:
    bundle = runner.bundle("true")
    (bundle.path / "link").symlink_to("rootfs")
    bundle.config["root"]["path"] = "link"
    with pytest.raises(StageError, match="link: not a directory, or a symlink"):
        runner.create(bundle)


@pytest.mark.parametrize(
    ("mount", "complaint"),
    [
        (tmpfs("/x", "size=lots"), r"mounts\[5\]: mount tmpfs on /x: .*Bad value for 'size'"),
        (tmpfs("/x", "nonsense"), r"mounts\[5\]: mount tmpfs on /x: .*Unknown parameter 'nonsense'"),
        (tmpfs("/etc/passwd"), r"mounts\[5\]: mount tmpfs on /etc/passwd: .*Not a directory"),
        ({"destination": "/x", "type": "nofs"}, r"mounts\[5\]: mount nofs on /x: .*No such device"),
    ],
)
def test_the_kernels_reason_for_a_refused_mount_is_told(
    inside: Inside, bundle: Bundle, mount: dict[str, Any], complaint: str
) -> None:
    bundle.config["mounts"].append(mount)
    with pytest.raises(AssertionError, match=complaint):
        inside(lambda: None)


def test_a_directory_is_not_bound_on_a_file_nor_a_file_on_a_directory(
    inside: Inside, bundle: Bundle, canary: Canary
) -> None:
    bundle.config["mounts"].append(bind(canary.path / "file", "/etc"))
    with pytest.raises(AssertionError, match=r"mounts\[5\]: .*/file is not a directory, /etc is one"):
        inside(lambda: None)
    bundle.config["mounts"][5] = bind(canary.path / "dir", "/etc/passwd")
    with pytest.raises(AssertionError, match=r"mounts\[5\]: bind .*/dir on /etc/passwd: .*Not a directory"):
        inside(lambda: None)


def test_missing_places_are_made_for_what_is_mounted_on_them(
    inside: Inside, bundle: Bundle, canary: Canary
) -> None:
    bundle.config["mounts"] += [
        bind(canary.path / "file", "/a/b/file"),
        bind(canary.path / "dir", "/a/c/dir"),
    ]
    found = inside(lambda: [Path("/a/b/file").read_text(), os.listdir("/a/c/dir")])
    assert found == ["canary\n", ["below"]]
    assert (bundle.rootfs / "a/b/file").is_file()
    assert (bundle.rootfs / "a/c/dir").is_dir()


def test_a_read_only_mount_cannot_be_written_and_others_can(
    inside: Inside, bundle: Bundle, tmp_path: Path, canary: Canary
) -> None:
    (tmp_path / "volume").mkdir()
    bundle.config["root"]["readonly"] = True
    bundle.config["mounts"] += [
        bind(canary.path, "/ro", "ro"),
        bind(tmp_path / "volume", "/rw"),
        tmpfs("/run", "ro"),
        tmpfs("/run/inner"),
    ]

    def tries() -> list[str]:
        refused = []
        for place in ("/", "/ro", "/rw", "/run", "/run/inner", "/sys", "/dev", "/etc"):
            try:
                Path(place, "new").write_text("x")
            except OSError as error:
                refused.append(f"{place}: {error.strerror}")
        return refused

    (bundle.rootfs / "run").mkdir()
    reason = "Read-only file system"
    assert inside(tries) == [
        f"{place}: {reason}" for place in ("/", "/ro", "/run", "/sys", "/etc")
    ] or inside(tries) == [
        f"/: {reason}",
        f"/ro: {reason}",
        f"/run: {reason}",
        "/sys: Permission denied",
        f"/etc: {reason}",
    ]


def test_a_tmpfs_takes_the_mode_of_the_directory_it_covers(inside: Inside, bundle: Bundle) -> None:
    (bundle.rootfs / "kept").mkdir()
    (bundle.rootfs / "kept").chmod(0o2751)
    bundle.config["mounts"] += [tmpfs("/kept"), tmpfs("/new"), tmpfs("/tmp", "mode=700")]
    assert inside(lambda: [oct(os.stat(place).st_mode) for place in ("/kept", "/new", "/tmp")]) == [
        "0o42751",
        "0o41777",
        "0o40700",
    ]


def test_tmpcopyup_brings_the_images_files_along(inside: Inside, bundle: Bundle) -> None:
    data = bundle.rootfs / "data"
    (data / "sub/deep").mkdir(parents=True)
    (data / "sub/deep/file").write_text("x" * 100_000)
    os.chown(data / "sub/deep/file", 7, 8)
    (data / "sub/deep/file").chmod(0o4750)
    (data / "link").symlink_to("/outside")
    os.mkfifo(data / "fifo", 0o640)
    os.mknod(data / "null", 0o20666, os.makedev(1, 3))
    (data / "sub").chmod(0o711)
    bundle.config["mounts"].append(tmpfs("/data", "tmpcopyup"))

    def look() -> list[Any]:
        file = os.stat("/data/sub/deep/file")
        Path("/data/sub/deep/file").write_text("changed")
        return [
            sorted(os.listdir("/data")),
            [oct(file.st_mode), file.st_uid, file.st_gid, file.st_size],
            os.readlink("/data/link"),
            [
                oct(os.stat("/data/fifo").st_mode),
                os.stat("/data/null").st_rdev,
                oct(os.stat("/data/sub").st_mode),
            ],
        ]

    assert inside(look) == [
        ["fifo", "link", "null", "sub"],
        ["0o104750", 7, 8, 100_000],
        "/outside",
        ["0o10640", os.makedev(1, 3), "0o40711"],
    ]
    assert (data / "sub/deep/file").read_text() == "x" * 100_000


def test_tmpcopyup_ends_at_a_tree_that_is_too_deep_or_too_big(inside: Inside, bundle: Bundle) -> None:
    data = bundle.rootfs / "data"
    data.mkdir()
    (data / "file").write_bytes(bytes(2_000_000))
    bundle.config["mounts"].append(tmpfs("/data", "tmpcopyup", "size=1m"))
    with pytest.raises(AssertionError, match="No space left on device"):
        inside(lambda: None)
    (data / "file").unlink()
    deep = data
    for _ in range(DEEPEST + 2):
        deep /= "d"
    deep.mkdir(parents=True)
    with pytest.raises(AssertionError, match="nested deeper than 128"):
        inside(lambda: None)


@pytest.mark.parametrize(
    ("asked", "root", "private", "shared"),
    [
        (None, "", "", "shared"),
        ("rprivate", "", "", "shared"),
        ("shared", "shared", "", "shared"),
        ("rshared", "shared", "shared", "shared"),
        ("rslave", "", "", "shared"),  # that is for what the host gives, not for what the container mounts
    ],
)
def test_propagation_of_the_root(
    inside: Inside, bundle: Bundle, canary: Canary, asked: str | None, root: str, private: str, shared: str
) -> None:
    bundle.config["linux"]["rootfsPropagation"] = asked
    bundle.config["mounts"] += [
        bind(canary.path, "/private", "rprivate"),
        bind(canary.path, "/shared", "rshared"),
    ]
    kinds = {}
    for line in inside(mount_lines):
        fields = line.split()
        kinds[fields[4]] = " ".join(field.split(":")[0] for field in fields[6 : fields.index("-")])
    assert (kinds["/"], kinds["/private"], kinds["/shared"]) == (root, private, shared)


@pytest.mark.parametrize("asked", [None, "rshared", "shared", "rprivate", "unbindable"])
def test_the_hosts_propagation_is_not_changed(
    inside: Inside, bundle: Bundle, canary: Canary, asked: str | None
) -> None:
    bundle.config["linux"]["rootfsPropagation"] = asked
    bundle.config["mounts"].append(bind(canary.path, "/data", "rshared"))
    before = shown_propagation()
    inside(lambda: None)
    assert shown_propagation() == before


def shown_propagation() -> list[str]:
    """The host's own mounts, by place and peers; other tests' come and go."""
    return [
        " ".join([line.split()[4], *line.split(" - ")[0].split()[6:]])
        for line in mount_lines()
        if line.split()[4].startswith(("/proc", "/sys", "/dev")) or line.split()[4] == "/"
    ]


@contextmanager
def mounted_on(place: Path) -> Iterator[None]:
    """A file system on the host that others have mounted."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "theirs", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_without_pivot_root_the_hosts_proc_and_sys_are_out_of_reach(
    inside: Inside, bundle: Bundle, tmp_path: Path
) -> None:
    def look() -> list[Any]:
        places = [line.split()[4] for line in mount_lines()]
        return [os.listdir("/"), [place for place in places if place.startswith("/proc")][:1]]

    with mounted_on(tmp_path / "a\rb"):  # no end of a line in mountinfo, where a line feed would be escaped
        names, proc = inside(look, no_pivot=True)
    assert sorted(names) == sorted(entry.name for entry in bundle.rootfs.iterdir())
    assert proc == ["/proc"]


def mount_proc(place: str) -> str:
    try:
        m.mount("none", place, "proc", 0)
    except OSError as error:
        return os.strerror(error.errno or 0)
    return "mounted"


def has_unreachable_procfs(place: Path) -> bool:
    """Whether one is mounted where nobody can name it, on an initramfs below `/`, say: nobody can take that away."""

    def attempt() -> Any:
        unshare(c.CLONE_NEWNS)
        m.mount_setattr(-100, path="/", propagation=m.MS_PRIVATE, recursive=True)
        for line in reversed([line for line in mount_lines() if " - proc " in line]):
            m.umount2(line.split()[4], m.MNT_DETACH)
        unshare(c.CLONE_NEWUSER | c.CLONE_NEWNS | c.CLONE_NEWPID)
        return in_child(lambda: mount_proc(str(place)))

    return bool(in_child(attempt) == "mounted")


def test_without_pivot_root_no_whole_procfs_can_be_mounted_in_a_user_namespace(
    inside: Inside, bundle: Bundle, tmp_path: Path
) -> None:
    """The kernel allows one where one is to be seen, and the host's would be, for all that chroot(2) does."""
    if has_unreachable_procfs(tmp_path):
        pytest.skip("this machine has a procfs below its root that chroot(2) hides as well")

    def attempt() -> Any:
        enter_user_namespace(c.CLONE_NEWNS | c.CLONE_NEWPID)
        return in_child(lambda: mount_proc("/proc"))

    assert inside(attempt, no_pivot=True) == "Operation not permitted"


def test_no_descriptor_is_left_open(inside: Inside, bundle: Bundle, canary: Canary) -> None:
    bundle.config["mounts"] += [bind(canary.path, "/data", "ro"), tmpfs("/run", "ro")]
    bundle.config["process"]["terminal"] = True
    before = open_descriptors()
    after = inside(open_descriptors)
    # in_child has a pipe of its own on each of the two levels.
    assert len([name for name in after if not name.startswith("pipe:")]) == len(
        [name for name in before if not name.startswith("pipe:")]
    )


def test_the_working_directory_is_made_inside_and_magic_links_are_no_way_out(
    inside: Inside, bundle: Bundle, canary: Canary
) -> None:
    bundle.config["process"]["cwd"] = "/srv/app/new"
    assert inside(lambda: os.path.isdir("/srv/app/new"))
    (bundle.rootfs / "out").symlink_to(canary.path)
    bundle.config["process"]["cwd"] = "/out/made"
    assert inside(lambda: os.path.isdir("/out/made"))
    for number in (3, 7, 12):
        bundle.config["process"]["cwd"] = f"/proc/self/fd/{number}"
        with pytest.raises(AssertionError, match="Too many levels of symbolic links"):
            inside(lambda: None)


def test_a_working_directory_that_cannot_be_made_is_named_once(runner: Runner) -> None:
    bundle = runner.bundle("true")
    bundle.config["process"]["cwd"] = "/etc/passwd/below"
    with pytest.raises(StageError) as caught:
        runner.create(bundle)
    assert str(caught.value) == "2:INIT: make working directory /etc/passwd/below: openat2: Not a directory"


def test_a_bind_of_something_else_than_a_procfs_on_proc_is_refused(
    inside: Inside, bundle: Bundle, canary: Canary
) -> None:
    bundle.config["mounts"][0] = bind(canary.path, "/proc")
    with pytest.raises(AssertionError, match="bind cannot be mounted on /proc, only a procfs can"):
        inside(lambda: None)
    bundle.config["mounts"][0] = bind("/proc/self/net", "/proc")
    with pytest.raises(AssertionError, match=r"/proc/self/net is part of a procfs, and not the root of one"):
        inside(lambda: None)
    bundle.config["mounts"][0] = bind("/proc", "/proc", "rbind")
    assert inside(lambda: sorted(options_of(mount_lines(), "/proc"))) == ["relatime", "rw"]


def test_a_volume_below_proc_by_way_of_a_symlink_is_refused(
    inside: Inside, bundle: Bundle, canary: Canary
) -> None:
    """The config's text says /harmless; only the resolved place tells (CVE-2019-16884)."""
    (bundle.rootfs / "harmless").symlink_to("/proc")
    for place in ("/harmless", "/harmless/self/attr", "/harmless/sys"):
        bundle.config["mounts"][5:] = [bind(canary.path / "dir", place)]
        with pytest.raises(AssertionError, match=r"/proc, only a procfs can|is inside /proc|Too many levels"):
            inside(lambda: None)
