"""Which sysctls a container may set, and where they are written to."""

from __future__ import annotations

import pytest

from runtime.errors import ConfigError
from runtime.spec.model import Linux, Namespace, Process, Root, Spec
from runtime.sysctls import plan_sysctls

ALL = ("ipc", "network", "uts", "user", "mount")


def spec(name: str, value: str = "1", namespaces: tuple[str, ...] = ALL, path: str | None = None) -> Spec:
    made = tuple(Namespace(kind, path if kind == "network" else None) for kind in namespaces)
    return Spec("1.3.0", Process(args=("sh",)), Root("r"), linux=Linux(namespaces=made, sysctl={name: value}))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("kernel.shmmax", "sys/kernel/shmmax"),
        ("kernel/shmmax", "sys/kernel/shmmax"),
        ("fs.mqueue.msg_max", "sys/fs/mqueue/msg_max"),
        ("net.ipv4.ip_forward", "sys/net/ipv4/ip_forward"),
        ("net/ipv4/conf/eno2.100/rp_filter", "sys/net/ipv4/conf/eno2.100/rp_filter"),
        ("net.ipv4.conf.eno2/100.rp_filter", "sys/net/ipv4/conf/eno2.100/rp_filter"),
        ("kernel.domainname", "sys/kernel/domainname"),
        ("user.max_user_namespaces", "sys/user/max_user_namespaces"),
    ],
)
def test_what_belongs_to_an_own_namespace_is_allowed(name: str, path: str) -> None:
    (write,) = plan_sysctls(spec(name))
    assert (write.path, write.value) == (path, "1")


@pytest.mark.parametrize(
    ("name", "missing", "complaint"),
    [
        ("kernel.shmmax", "ipc", "host's IPC namespace"),
        ("fs.mqueue.msg_max", "ipc", "host's IPC namespace"),
        ("net.ipv4.ip_forward", "network", "host's network namespace"),
        ("kernel.domainname", "uts", "does not belong to a namespace"),
        ("user.max_user_namespaces", "user", "without a user namespace"),
        ("kernel.hostname", "", "the field hostname is for that"),
        ("kernel.core_pattern", "", "does not belong to a namespace"),
        ("vm.swappiness", "", "does not belong to a namespace"),
        ("kernel.shmmaxx", "", "does not belong to a namespace"),
        ("kernel/../kernel/core_pattern", "", "is not a name"),
        ("net.ipv4..ip_forward", "", "is not a name"),
        ("net./../kernel.core_pattern", "", "is not a name"),
        (".net.x", "", "is not a name"),
        ("net.ipv4.", "", "is not a name"),
        ("net.ipv4.ip forward", "", "is not allowed"),
    ],
)
def test_what_does_not_is_refused_by_name(name: str, missing: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=rf"linux.sysctl\[.*\]: .*{complaint}"):
        plan_sysctls(spec(name, namespaces=tuple(kind for kind in ALL if kind != missing)))


@pytest.mark.parametrize("value", ["1\nkernel.core_pattern=|/x", "1+kernel.core_pattern=x", "1\r"])
def test_a_value_that_could_hold_a_second_one_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="not allowed"):
        plan_sysctls(spec("kernel.shmmax", value))


def test_a_network_namespace_joined_by_path_counts_only_if_it_is_another_one() -> None:
    with pytest.raises(ConfigError, match="host's network namespace"):
        plan_sysctls(spec("net.ipv4.ip_forward", path="/proc/self/ns/net"))
    with pytest.raises(ConfigError, match="network namespace /no/such: No such file"):
        plan_sysctls(spec("net.ipv4.ip_forward", path="/no/such"))
    assert plan_sysctls(spec("net.ipv4.ip_forward", path="/proc/1/ns/net"), network_is_host=False)


def test_no_sysctls_are_no_writes() -> None:
    assert plan_sysctls(Spec("1.3.0", Process(args=("sh",)), Root("r"))) == ()
