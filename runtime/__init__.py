"""The runtime: what libcontainer is to runc, as a package.

A map, from the caller downwards; each floor may use the ones below it, never the other way:

    cli/                       manor-oci: words to verbs, failures to exit codes; no shim loads it

    operations/                create, start, exec, kill, delete …: the verbs, as generators that never block
    features                   what this runtime can do, as the OCI features document

    stages/                    main -> 1:INTER -> 2:INIT: clone, the conversation between the stages, the seal

    terms                      a container's terms as JSON: for state.json, and from its maker to its keeper

    container                  Host, Container, Tenant: what a verb takes and gives
    bundle                     its config.json, as it lies there
    payload                    the program itself: file, arguments, environment, directory, and the execve

    rootfs/                    its file system: decided, made, entered and closed off
    cgroups/                   both versions, by files or by systemd
    namespaces user_mapping    which are new and which are joined; the id maps of a new user namespace
    credentials labels         ids, groups, capabilities; AppArmor, SELinux, and the session keyring
    seccomp seccomp_enosys     a profile compiled, and ENOSYS for system calls that are newer than it
    seccomp_notify             the agent that answers for a process's system calls
    limits affinity            rlimits, scheduling, OOM score; on which CPUs a tenant begins and goes on
    sysctls rdt                kernel settings of a container; its share of caches and memory bandwidth
    terminal                   a pty of its own devpts, found and checked through file descriptors
    hooks                      programs that config.json wants run at moments of its life
    net_devices                network devices that move into it

    spec/                      config.json, read once into typed records
    state status               state.json, always a whole file; a status from it, /proc and the freezer

    linux/                     the only door to the kernel (calls of C are made here and nowhere else)

    errors record              failures as types that callers tell apart; typed records without dataclasses
    waiting undo               how an operation says that it must wait; undoing what it had when a later step fails
    trace faults               where the milliseconds went; failures and delays on demand
    version                    which Manor this is

What a shim process loads is counted: no typing, re, enum, json or dataclasses below this line. And a package loads
nothing of what is in it, so that a command loads what it needs: names are imported from the module that has them.
"""
