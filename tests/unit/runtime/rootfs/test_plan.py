"""The plan of a root file system, as a value."""

from __future__ import annotations

import stat

import pytest

from runtime.errors import ConfigError
from runtime.linux import mount as m
from runtime.record import replace
from runtime.rootfs.device_plan import DeviceNode
from runtime.rootfs.id_map import IdMap
from runtime.rootfs.options import AttributeChange
from runtime.rootfs.plan import BindStep, FilesystemStep, RootfsPlan, SymlinkStep, plan_rootfs
from runtime.spec.model import Device, IdMapping, Linux, Mount, Namespace, Process, Root, Spec, User
from tests.unit.runtime.rootfs.views import HYBRID, UNIFIED

BASE = m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NODEV | m.MOUNT_ATTR_NOEXEC
OWN = (Namespace("mount"), Namespace("cgroup"))


def spec(*mounts: Mount, namespaces: tuple[Namespace, ...] = OWN, **linux: object) -> Spec:
    return Spec(
        "1.3.0",
        Process(args=("sh",)),
        Root("rootfs"),
        mounts=mounts,
        linux=Linux(namespaces=namespaces, **linux),  # type: ignore[arg-type]
    )


def plan(*mounts: Mount, namespaces: tuple[Namespace, ...] = OWN, **linux: object) -> RootfsPlan:
    return plan_rootfs(spec(*mounts, namespaces=namespaces, **linux), "/run/b", HYBRID)


def test_a_relative_root_is_below_the_bundle_and_an_absolute_one_is_itself() -> None:
    assert plan().root == "/run/b/rootfs"
    absolute = replace(spec(), root=Root("/var/lib/x/../merged/", readonly=True))
    made = plan_rootfs(absolute, "/run/b", HYBRID)
    assert (made.root, made.read_only) == ("/var/lib/merged", True)


def test_mounts_are_planned_in_the_order_of_the_config() -> None:
    made = plan(
        Mount("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
        Mount("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755")),
        Mount("/data", "bind", "vol", ("rbind", "rprivate", "ro")),
    )
    assert made.steps == (
        FilesystemStep("mounts[0]", "/proc", "proc", "proc", attributes=BASE),
        FilesystemStep(
            "mounts[1]",
            "/dev",
            "tmpfs",
            "tmpfs",
            options=(("mode", "755"),),
            attributes=m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_STRICTATIME,
        ),
        BindStep(
            "mounts[2]",
            "/data",
            "/run/b/vol",
            recursive=True,
            change=AttributeChange(
                m.MOUNT_ATTR_RDONLY, BASE | m.MOUNT_ATTR_RDONLY | m.MOUNT_ATTR_NOSYMFOLLOW
            ),
            gentle=AttributeChange(m.MOUNT_ATTR_RDONLY, m.MOUNT_ATTR_NOSYMFOLLOW),
            propagation=((m.MS_PRIVATE, True),),
        ),
    )


def test_the_type_of_a_bind_mount_means_nothing() -> None:
    for kind in (None, "none", "bind", "tmpfs"):
        (step,) = plan(Mount("/a", kind, "/b", ("bind",))).steps
        assert isinstance(step, BindStep)
    (step,) = plan(Mount("/a", "bind", "/b")).steps
    assert isinstance(step, BindStep)


def test_a_read_only_tmpfs_becomes_so_only_at_the_end() -> None:
    (step,) = plan(Mount("/run", "tmpfs", "tmpfs", ("ro", "size=1m"))).steps
    assert isinstance(step, FilesystemStep)
    assert step.late_read_only
    assert step.attributes == 0
    assert step.options == (("size", "1m"),)
    (sysfs,) = plan(Mount("/sys", "sysfs", "sysfs", ("ro",))).steps
    assert isinstance(sysfs, FilesystemStep)
    assert not sysfs.late_read_only
    assert sysfs.options == (("ro", None),)
    assert sysfs.attributes == m.MOUNT_ATTR_RDONLY


@pytest.mark.parametrize(
    ("mount", "complaint"),
    [
        (Mount("/", "tmpfs"), r"mounts\[0\].destination: the root itself"),
        (Mount("/a/..", "bind", "/x", ("bind",)), r"mounts\[0\].destination: the root itself"),
        (Mount("/a"), r"mounts\[0\].type: is missing"),
        (Mount("/a", "bind", None, ("bind",)), r"mounts\[0\].source: is missing"),
        (
            Mount("/a", "bind", "/b", ("bind", "size=1")),
            r"mounts\[0\].options: 'size=1' has no meaning for a bind",
        ),
        (Mount("/a", "bind", "/b", ("bind", "remount")), r"mounts\[0\].options: remount"),
        (
            Mount("/a", "proc", "proc", ("tmpcopyup",)),
            r"mounts\[0\].options: tmpcopyup has no meaning for proc",
        ),
        (Mount("/proc", "tmpfs", "tmpfs"), r"mounts\[0\].destination: tmpfs cannot be mounted on /proc"),
        (Mount("/x/../proc//", "sysfs"), r"mounts\[0\].destination: sysfs cannot be mounted on /proc"),
        (Mount("/proc/asound", "tmpfs"), r"mounts\[0\].destination: /proc/asound is inside /proc"),
        (
            Mount("/proc/self/attr", "bind", "/x", ("bind",)),
            r"mounts\[0\].destination: /proc/self/attr is inside",
        ),
        (Mount("/proc/1", "proc", "proc"), r"mounts\[0\].destination: /proc/1 is inside /proc"),
    ],
)
def test_a_mount_that_cannot_be_is_refused_with_its_path(mount: Mount, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        plan(mount)


def test_files_that_lxcfs_fakes_may_be_bound_into_proc() -> None:
    assert len(plan(Mount("/proc/meminfo", "bind", "/lxcfs/meminfo", ("bind",))).steps) == 1
    assert len(plan(Mount("/proc", "bind", "/proc", ("rbind",))).steps) == 1  # apply sees that it is a procfs


def test_a_destination_may_be_given_as_the_host_sees_it() -> None:
    for given, destination in (
        ("/run/b/rootfs/data", "/data"),
        ("/run/b/rootfs//data/x/..", "/data"),
        ("/run/b/rootfsdata", "/run/b/rootfsdata"),
        ("data/x", "data/x"),
    ):
        (step,) = plan(Mount(given, "tmpfs")).steps
        assert step.destination == destination
    with pytest.raises(ConfigError, match=r"mounts\[0\].destination: the root itself cannot be mounted over"):
        plan(Mount("/run/b/rootfs/", "tmpfs"))


MAP = (IdMapping(0, 100, 5), IdMapping(10, 200, 1))
USER = (*OWN, Namespace("user"))
JOINED = (*OWN, Namespace("user", "/proc/7/ns/user"))


@pytest.mark.parametrize(
    ("options", "maps", "namespaces", "expected"),
    [
        (("bind",), {}, USER, None),
        (
            ("bind",),
            {"uid_mappings": MAP, "gid_mappings": MAP[:1]},
            OWN,
            IdMap("0 100 5\n10 200 1\n", "0 100 5\n"),
        ),
        (
            ("idmap", "bind"),
            {"uid_mappings": MAP[:1], "gid_mappings": MAP[:1]},
            JOINED,
            IdMap("0 100 5\n", "0 100 5\n"),
        ),
        (("bind", "idmap"), {}, USER, IdMap("0 9 1\n", "0 9 1\n")),
        (("rbind", "ridmap"), {}, USER, IdMap("0 9 1\n", "0 9 1\n", recursive=True)),
        (("rbind", "ridmap"), {}, JOINED, IdMap(namespace="/proc/7/ns/user", recursive=True)),
    ],
)
def test_a_mount_is_id_mapped_by_its_own_maps_or_by_the_containers(
    options: tuple[str, ...],
    maps: dict[str, tuple[IdMapping, ...]],
    namespaces: tuple[Namespace, ...],
    expected: IdMap | None,
) -> None:
    theirs = (IdMapping(0, 9, 1),) if namespaces is USER else ()
    made = plan(
        Mount("/a", None, "/b", options, **maps),
        namespaces=namespaces,
        uid_mappings=theirs,
        gid_mappings=theirs,
    )
    (step,) = made.steps
    assert isinstance(step, BindStep)
    assert step.id_map == expected


@pytest.mark.parametrize(
    ("mount", "complaint"),
    [
        (
            Mount("/a", "bind", "/b", ("bind", "idmap")),
            r"mounts\[0\]: an id-mapped mount needs uidMappings and gid",
        ),
        (Mount("/a", "bind", "/b", ("bind",), uid_mappings=MAP), r"mounts\[0\]: an id-mapped mount needs"),
        (Mount("/a", "tmpfs", "tmpfs", ("idmap",)), r"mounts\[0\]: only a bind mount can be id-mapped"),
    ],
)
def test_ids_are_not_mapped_without_maps_nor_for_a_new_file_system(mount: Mount, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        plan(mount)


def test_without_a_new_mount_namespace_the_plan_says_whose_mounts_they_are() -> None:
    assert plan(namespaces=()).on_host
    assert not plan(namespaces=(Namespace("mount", "/proc/7/ns/mnt"),)).on_host


def test_propagation_is_rslave_unless_asked_otherwise() -> None:
    assert plan().propagation == m.MS_SLAVE | m.MS_REC
    assert plan().root_propagation == 0
    private = plan(rootfs_propagation="rprivate")
    assert (private.propagation, private.root_propagation) == (m.MS_PRIVATE | m.MS_REC, 0)
    assert not private.bind_root
    assert plan(rootfs_propagation="private").bind_root  # what holds the root may still be shared
    slave = plan(rootfs_propagation="rslave")
    assert (slave.root_propagation, slave.first_propagation) == (0, m.MS_SLAVE)
    assert plan().first_propagation == private.first_propagation == m.MS_PRIVATE
    shared = plan(rootfs_propagation="shared")
    assert (shared.propagation, shared.root_propagation, shared.bind_root) == (m.MS_SHARED, m.MS_SHARED, True)
    with pytest.raises(ConfigError, match="linux.rootfsPropagation: private is not safe without pivot_root"):
        plan_rootfs(spec(rootfs_propagation="private"), "/run/b", HYBRID, no_pivot=True)


def test_a_user_namespace_binds_the_root_and_the_devices() -> None:
    made = plan(namespaces=(*OWN, Namespace("user")))
    assert made.bind_root
    assert made.bind_devices


def test_a_selinux_label_goes_to_file_systems_that_take_one() -> None:
    made = plan(Mount("/a", "tmpfs", "tmpfs"), Mount("/dev/mqueue", "mqueue", "mqueue"), mount_label="u:r:t")
    assert [getattr(step, "options", None) for step in made.steps] == [(("context", "u:r:t"),), ()]


def test_masked_and_read_only_paths_are_cleaned_and_distinct() -> None:
    made = plan(
        masked_paths=("/proc/kcore", "//proc/./kcore", "/proc/keys/"), readonly_paths=("/sys/../proc/sys",)
    )
    assert made.masked_paths == ("/proc/kcore", "/proc/keys")
    assert made.readonly_paths == ("/proc/sys",)


def test_umask_console_and_working_directory_come_from_the_process() -> None:
    process = Process(args=("sh",), user=User(umask=0o77), terminal=True, cwd="/srv/app")
    made = plan_rootfs(replace(spec(), process=process), "/run/b", HYBRID)
    assert (made.umask, made.console, made.cwd) == (0o77, True, "/srv/app")
    assert plan().umask == 0o22


# ---- cgroups -----------------------------------------------------------------------------------

CGROUP = Mount("/sys/fs/cgroup", "cgroup", "cgroup", ("nosuid", "noexec", "nodev", "relatime", "ro"))


def test_v1_hierarchies_are_mounted_in_a_tmpfs_with_links_for_joint_controllers() -> None:
    holder, cpu, first, second, memory, systemd = plan(CGROUP).steps
    assert isinstance(holder, FilesystemStep)
    assert (holder.type, holder.options, holder.late_read_only) == ("tmpfs", (("mode", "755"),), True)
    assert cpu == FilesystemStep(
        "mounts[0]",
        "/sys/fs/cgroup/cpu,cpuacct",
        "cgroup",
        "cgroup",
        options=(("ro", None), ("cpu", None), ("cpuacct", None)),
        attributes=BASE | m.MOUNT_ATTR_RDONLY,
    )
    assert first == SymlinkStep("mounts[0]", "/sys/fs/cgroup/cpu", "cpu,cpuacct")
    assert second == SymlinkStep("mounts[0]", "/sys/fs/cgroup/cpuacct", "cpu,cpuacct")
    assert memory.destination == "/sys/fs/cgroup/memory"
    assert isinstance(systemd, FilesystemStep)
    assert (systemd.source, systemd.options) == ("systemd", (("ro", None), ("name", "systemd")))


def test_without_a_cgroup_namespace_the_own_cgroup_is_bound_in_each_hierarchy() -> None:
    _holder, cpu, _first, _second, *others = plan(CGROUP, namespaces=(Namespace("mount"),)).steps
    assert isinstance(cpu, BindStep)
    assert (cpu.source, cpu.below_own_cgroup, cpu.recursive) == (
        "/sys/fs/cgroup/cpu,cpuacct",
        "cpu,cpuacct",
        True,
    )
    assert cpu.change is not None
    assert cpu.change.set == BASE | m.MOUNT_ATTR_RDONLY
    assert [getattr(step, "below_own_cgroup", None) for step in others] == ["memory", "name=systemd"]


def test_a_unified_machine_has_one_cgroup2_with_a_bind_to_fall_back_to() -> None:
    (step,) = plan_rootfs(spec(CGROUP), "/run/b", UNIFIED).steps
    assert isinstance(step, FilesystemStep)
    assert (step.type, step.source, step.options) == ("cgroup2", "cgroup", (("ro", None),))
    assert step.instead is not None
    assert (step.instead.source, step.instead.below_own_cgroup) == ("/sys/fs/cgroup", "unified")
    (bound,) = plan_rootfs(spec(CGROUP, namespaces=(Namespace("mount"),)), "/run/b", UNIFIED).steps
    assert isinstance(bound, BindStep)
    assert bound == replace(
        step.instead, below_own_cgroup=None
    )  # the host's tree, for it has the host's view


# ---- devices -----------------------------------------------------------------------------------


def test_the_default_devices_are_made_and_the_config_may_replace_them() -> None:
    assert [node.path for node in plan().devices] == [
        f"/dev/{name}" for name in ("null", "random", "full", "tty", "zero", "urandom")
    ]
    made = plan(
        devices=(
            Device("/dev/tty", "c", 5, 0, file_mode=0o100600, uid=7, gid=8),
            Device("/dev/pipe", "p"),
            Device("/dev/ptmx", "c", 5, 2),
            Device("/dev/loop0", "b", 7, 0),
        )
    ).devices
    assert made[-3:] == (
        DeviceNode("/dev/tty", stat.S_IFCHR | 0o600, 5, 0, 7, 8),
        DeviceNode("/dev/pipe", stat.S_IFIFO | 0o666, 0, 0),
        DeviceNode("/dev/loop0", stat.S_IFBLK | 0o666, 7, 0),
    )
    assert len(made) == 8


def test_a_bound_dev_is_left_alone() -> None:
    assert plan().populate_dev
    assert not plan(Mount("/dev/", "bind", "/dev", ("rbind",))).populate_dev
