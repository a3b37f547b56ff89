"""What a pod is to be, and what its containers' configs become."""

from __future__ import annotations

import pytest

from runtime.errors import ConfigError, InvalidArgument
from runtime.linux import constants as c
from runtime.record import replace
from runtime.spec.model import Linux, Mount, Namespace, Process, Root, Spec
from shim.api.pod_config import (
    CONTAINER,
    NODE,
    POD,
    TARGET,
    DnsConfig,
    IdMapping,
    LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext,
    NamespaceOption,
    PodSandboxConfig,
    UserNamespace,
)
from shim.api.sandbox import CreateSandboxRequest
from shim.api.types import Any, pack
from shim.pod_plan import PodPlan, Tenancy, adapt, plan_pod, resolver_text

NETNS = "/run/netns/pod"
DEFAULTS = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}


@pytest.fixture(autouse=True)
def _no_network_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.sysctls._is_host_network", lambda _path, _known: False)


def asked(
    sysctls: dict[str, str] | None = None,
    netns_path: str = NETNS,
    hostname: str = "",
    dns: DnsConfig | None = None,
    parent: str = "",
    network: int = POD,
    pid: int = CONTAINER,
    ipc: int = POD,
    user: UserNamespace | None = None,
) -> CreateSandboxRequest:
    options = NamespaceOption(network, pid, ipc, userns_options=user)
    linux = LinuxPodSandboxConfig(parent, LinuxSandboxSecurityContext(options), sysctls or {})
    config = PodSandboxConfig(hostname=hostname, dns_config=dns, linux=linux)
    return CreateSandboxRequest("p1", "/bundle", options=pack(config), netns_path=netns_path)


def settings(plan: PodPlan) -> dict[str, str]:
    return {write.name: write.value for write in plan.sysctls}


def test_a_plain_pod_has_its_own_ipc_and_host_name_in_the_network_that_it_was_given() -> None:
    plan = plan_pod(asked(hostname="my-pod"))
    assert plan.own == ("network", "uts", "ipc")
    assert plan.new == c.CLONE_NEWIPC | c.CLONE_NEWUTS
    assert (plan.netns_path, plan.hostname, plan.shares_pids, plan.private_pids) == (
        NETNS,
        "my-pod",
        False,
        True,
    )
    assert settings(plan) == DEFAULTS


def test_without_a_network_it_gets_one() -> None:
    assert plan_pod(asked(netns_path="")).new == c.CLONE_NEWIPC | c.CLONE_NEWUTS | c.CLONE_NEWNET


def test_a_pod_in_the_nodes_network_has_the_nodes_name_and_no_settings_of_ours() -> None:
    plan = plan_pod(asked(network=NODE))
    assert (plan.own, plan.netns_path, plan.hostname, plan.sysctls) == (("ipc",), "", "", ())


def test_a_pod_in_the_nodes_network_gets_no_host_name_of_its_own_and_is_not_made_without_it() -> None:
    with pytest.raises(InvalidArgument, match="host name is to be 'my-pod'"):
        plan_pod(asked(network=NODE, hostname="my-pod"))


def test_a_pod_in_the_nodes_ipc_namespace_makes_none() -> None:
    assert plan_pod(asked(ipc=NODE)).new == c.CLONE_NEWUTS


@pytest.mark.parametrize(
    ("mode", "shared", "private"), [(POD, True, False), (CONTAINER, False, True), (NODE, False, False)]
)
def test_pids_are_shared_in_the_pod_alone_or_with_the_node(mode: int, shared: bool, private: bool) -> None:
    plan = plan_pod(asked(pid=mode))
    assert (plan.shares_pids, plan.private_pids) == (shared, private)
    assert not plan.new & c.CLONE_NEWPID  # that one comes with the landlord


def test_without_options_pids_are_not_shared() -> None:
    plan = plan_pod(CreateSandboxRequest("p1", "/bundle"))
    assert (plan.own, plan.private_pids) == (("network", "uts", "ipc"), True)
    assert not plan_pod(CreateSandboxRequest("p1", options=Any())).private_pids  # an empty config says so


def test_what_the_pod_says_of_a_setting_counts() -> None:
    own = {"net.ipv4.ping_group_range": "0 7", "kernel.sem": "1 2 3 4"}
    assert settings(plan_pod(asked(own))) == {**DEFAULTS, **own}


@pytest.mark.parametrize("name", ["vm.swappiness", "kernel.hostname"])
def test_a_setting_of_the_nodes_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        plan_pod(asked({name: "1"}))


def test_a_setting_of_a_namespace_that_the_pod_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="host's network namespace"):
        plan_pod(asked({"net.core.somaxconn": "1"}, network=NODE))
    with pytest.raises(ConfigError, match="host's IPC namespace"):
        plan_pod(asked({"kernel.msgmax": "1"}, ipc=NODE))


@pytest.mark.parametrize(
    ("name", "modes"),
    [("network", {"network": CONTAINER}), ("ipc", {"ipc": TARGET}), ("pid", {"pid": TARGET})],
)
def test_a_mode_that_a_pod_cannot_have_is_refused(name: str, modes: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument, match=f"mode . of its {name} namespace"):
        plan_pod(asked(**modes))  # type: ignore[arg-type]


IDS = [IdMapping(200_000, 0, 65_536)]


def test_a_user_namespace_comes_with_the_network_or_is_made() -> None:
    plan = plan_pod(asked(user=UserNamespace(POD, IDS, IDS)))
    assert plan.own == ("network", "uts", "ipc", "user")
    assert plan.new == c.CLONE_NEWIPC | c.CLONE_NEWUTS
    assert plan.root_ids() == (200_000, 200_000)
    assert plan.mapping().uid_map == "0 200000 65536\n"
    alone = plan_pod(asked(user=UserNamespace(POD, IDS, IDS), netns_path="", network=NODE))
    assert alone.new == c.CLONE_NEWIPC | c.CLONE_NEWUSER


def test_the_nodes_user_namespace_may_be_asked_for_by_name() -> None:
    plan = plan_pod(asked(user=UserNamespace(NODE)))
    assert ("user" in plan.own, plan.root_ids()) == (False, (0, 0))


def test_groups_that_a_user_namespace_does_not_have_may_not_be_let_ping() -> None:
    user = UserNamespace(POD, IDS, IDS)
    assert list(settings(plan_pod(asked(user=user)))) == ["net.ipv4.ip_unprivileged_port_start"]
    own = {"net.ipv4.ping_group_range": "0 7"}
    assert settings(plan_pod(asked(own, user=user)))["net.ipv4.ping_group_range"] == "0 7"


@pytest.mark.parametrize("ids", [[], [IdMapping(200_000, 1, 10)], [IdMapping(0, 0, 0)]])
def test_ids_that_cannot_be_mapped_are_refused(ids: list[IdMapping]) -> None:
    with pytest.raises(ConfigError, match="linux.uidMappings"):
        plan_pod(asked(user=UserNamespace(POD, ids, IDS)))


@pytest.mark.parametrize(
    ("parent", "path"),
    [
        ("", ""),
        ("/kubepods/pod1", "/kubepods/pod1/p1"),
        ("/kubepods/pod1/", "/kubepods/pod1/p1"),
        ("/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice:cri-containerd:p1"),
    ],
)
def test_the_landlords_cgroup_is_beside_those_of_the_containers(parent: str, path: str) -> None:
    assert plan_pod(asked(parent=parent)).cgroups_path() == path


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (DnsConfig(), ""),
        (DnsConfig(["10.0.0.10"]), "nameserver 10.0.0.10\n"),
        (
            DnsConfig(["1.1.1.1", "::1"], ["a", "b"], ["ndots:5", "edns0"]),
            "search a b\nnameserver 1.1.1.1\nnameserver ::1\noptions ndots:5 edns0\n",
        ),
    ],
)
def test_resolv_conf(config: DnsConfig, text: str) -> None:
    assert resolver_text(config) == text
    assert plan_pod(asked(dns=config)).dns == text
    assert plan_pod(asked()).dns is None


# --- containers ------------------------------------------------------------------------------------------

FILES = {"/etc/hostname": "/pod/hostname", "/etc/hosts": "/pod/hosts", "/etc/resolv.conf": "/pod/resolv.conf"}
PATHS = {"network": "/proc/self/fd/7", "ipc": "/proc/self/fd/8", "uts": "/proc/self/fd/9"}
TENANCY = Tenancy(100, PATHS, FILES, "/pod/shm", True, (7, 8, 9))
DEFAULT_SHM = Mount("/dev/shm", "tmpfs", "shm", ("nosuid",))


def spec(*namespaces: Namespace, mounts: tuple[Mount, ...] = (), readonly: bool = False) -> Spec:
    return Spec(
        "1.2.0", Process(), Root("rootfs", readonly), mounts=mounts, linux=Linux(namespaces=namespaces)
    )


def of_process(pid: int, *types: str) -> tuple[Namespace, ...]:
    names = {"network": "net", "mount": "mnt"}
    return tuple(Namespace(kind, f"/proc/{pid}/ns/{names.get(kind, kind)}") for kind in types)


def test_the_pods_namespaces_stand_where_its_process_was_named() -> None:
    own = (Namespace("mount"), Namespace("pid"))
    adapted = adapt(spec(*own, *of_process(100, "network", "ipc", "uts")), TENANCY)
    assert adapted.linux.namespaces == (
        *own,
        *(Namespace(kind, PATHS[kind]) for kind in ("network", "ipc", "uts")),
    )


def test_namespaces_of_other_processes_stay() -> None:
    other = of_process(101, "pid", "network")
    assert adapt(spec(*other), TENANCY).linux.namespaces == other


def test_what_the_pod_shares_with_the_node_is_left_out() -> None:
    node = replace(TENANCY, paths={}, private_pids=False)
    adapted = adapt(spec(Namespace("mount"), *of_process(100, "network", "ipc", "uts", "pid")), node)
    assert adapted.linux.namespaces == (Namespace("mount"),)


def test_a_container_of_the_nodes_network_has_pids_of_its_own() -> None:
    node = replace(TENANCY, paths={"ipc": PATHS["ipc"]})
    own = Namespace("pid")
    assert adapt(spec(own, *of_process(100, "network")), node).linux.namespaces == (own,)


@pytest.mark.parametrize("kind", ["pid", "user", "mount", "cgroup", "time"])
def test_what_the_pod_does_not_have_is_never_the_nodes(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"do not share a {kind} namespace"):
        adapt(spec(*of_process(100, kind)), TENANCY)


def test_the_pods_files_are_mounted_where_the_container_has_none_of_its_own() -> None:
    volume = Mount("/etc/hosts", "bind", "/volume", ("rbind",))
    mounts = adapt(spec(mounts=(volume,)), TENANCY).mounts
    assert mounts[0] == volume
    assert [(each.destination, each.source, each.options[-1]) for each in mounts[1:]] == [
        ("/etc/hostname", "/pod/hostname", "rw"),
        ("/etc/resolv.conf", "/pod/resolv.conf", "rw"),
    ]


def test_a_file_that_the_pod_does_not_have_is_not_mounted() -> None:
    tenancy = replace(TENANCY, files={"/etc/hostname": "/pod/hostname"})
    assert [each.destination for each in adapt(spec(), tenancy).mounts] == ["/etc/hostname"]


def test_a_read_only_container_cannot_write_to_the_pods_files() -> None:
    mounts = adapt(spec(readonly=True), TENANCY).mounts
    assert {each.options[-1] for each in mounts} == {"ro"}


def test_dev_shm_is_the_pods_for_who_shares_its_ipc_namespace() -> None:
    proc = Mount("/proc", "proc", "proc")
    mounts = (proc, DEFAULT_SHM)
    shared = adapt(spec(*of_process(100, "ipc"), mounts=mounts), TENANCY).mounts
    assert shared[0] == proc
    assert (shared[1].type, shared[1].source, shared[1].options[0]) == ("bind", "/pod/shm", "rbind")
    assert adapt(spec(mounts=mounts), TENANCY).mounts[1] == DEFAULT_SHM
    node = replace(TENANCY, shm="")
    assert adapt(spec(*of_process(100, "ipc"), mounts=mounts), node).mounts[1] == DEFAULT_SHM


@pytest.mark.parametrize(
    "volume",
    [
        Mount("/dev/shm", "bind", "/volume", ("rbind",)),
        Mount("/dev/shm", "bind", "shm", ("rbind",)),
        Mount("/dev/shm", "tmpfs", "tmpfs", ("size=1m",)),
        Mount("/shm", "tmpfs", "shm", ("size=1m",)),
    ],
)
def test_a_volume_in_place_of_dev_shm_or_like_it_stays(volume: Mount) -> None:
    assert adapt(spec(*of_process(100, "ipc"), mounts=(volume,)), TENANCY).mounts[0] == volume


@pytest.mark.parametrize("label", [None, "u:r:t:s0:c1"])
def test_a_container_with_a_label_can_use_the_pods_files(
    monkeypatch: pytest.MonkeyPatch, label: str | None
) -> None:
    labelled: list[tuple[list[str], str]] = []
    monkeypatch.setattr("shim.pod_plan.share_label", lambda paths, to: labelled.append((paths, to)))
    TENANCY.adapt(replace(spec(), linux=Linux(mount_label=label)))
    assert labelled == ([([*FILES.values(), "/pod/shm"], label)] if label else [])
