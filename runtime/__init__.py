"""The runtime: what libcontainer is to runc, as a package.

A map, from the caller downwards; each line may use the ones below it, never the other way:

    cli/            manor-oci: words to verbs, failures to exit codes; no shim loads it
    operations/     create, start, exec, kill, delete …: the verbs, as generators that never block
    stages/         main -> 1:INTER -> 2:INIT: clone, the conversation between the stages, the seal
    container       Host, Container, Tenant: what a verb takes and gives
    rootfs/ cgroups/ credentials seccomp affinity terminal …: one kind of kernel object each
    spec/ state     config.json read once into typed records; state.json always a whole file
    linux/          the only door to the kernel (ctypes lives here and nowhere else)
    record errors waiting trace

What a shim process loads is counted: no typing, re, enum, json or dataclasses below this line.
"""
