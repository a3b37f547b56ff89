"""Cgroups of both versions: where they are mounted, what a container's are called, what they limit and count.

    layout      which hierarchies this machine has; the path a config names; pure but for one read of mountinfo
    resources   limits as a list of writes (pure); plan_v1 and plan_v2 know the files of each version
    limits      puts such a list into force; writes is its vocabulary
    devices     device rules as a policy (pure); v1 writes it, device_program compiles it to eBPF for v2
    directories make a container's directories, hand v2 controllers down, remove all of it
    cgroup      Cgroup: one container's place in every hierarchy
    joining     Join, the way into it or into a cgroup below it; leaf: one below it for a single exec
    driver      file system or systemd (pure)
    freezer     pausing; signals: to everybody in a cgroup
    files       reading and writing the files of one cgroup

For some callers only:

    counters    what a container uses (stats_v1, stats_v2)
    systemd     units over D-Bus (bus); unit_name, unit_properties and unit_annotations (pure) say what is asked for
    transient_cpuset  CPUs for a tenant that may not yet have its own

No process is ever moved by pid on the way in: see `Join`.
"""
