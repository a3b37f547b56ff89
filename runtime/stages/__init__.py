"""The clone stages: how a container's init and its tenants come to be.

Three processes, one file each, as in runc and youki:

    landlord  tenant   who is to be cloned: a container's init, an exec, in the shape that is right for it
    stage0_parent      the shim or the command line: answers requests, waits for "ready"
    stage1_namespaces  1:INTER: cgroup, user and PID namespace, clones stage 2 as its sibling, exits
    stage2_init        2:INIT of a landlord: rootfs, pivot, credentials, start gate, execve
    start_gate         what init does there until somebody starts it
    stage2_exec        2:INIT of a tenant: joins the landlord's namespaces, credentials, execve
    mount_sources      0:MOUNT: opens for init what only the host's side may, on init's request
    shared_pids        what 1:INTER does for an init that joins a PID namespace by path: all up to the pivot

Two shapes: `staged` clones all three; `direct` does stage 1's work around a single clone where the caller is root and
the user namespaces allow it: the same steps from the same functions. `plan` is what all of them are told before they
are cloned, `clone` the one place where that is done, `program` the end that all have in common. `seal` and `graft` keep
the interpreter out of containers' reach. `messages` and `channel` carry the conversation:

    main                                1:INTER                         2:INIT
     │ clone ────────────────────────────►│                                │
     │ ◄─────────── MappingRequest ───────│ (new user namespace)           │
     │ ─ MappingWritten ─────────────────►│                                │
     │                                    │ clone, CLONE_PARENT ──────────►│
     │ ◄─────────── InitPid ──────────────│ exit 0                         │
     │ (pids.max)                                                         │
     │ ─ LimitsSet ───────────────────────────────────────────────────────►│
     │ ◄──────────────────────────────────────────── HostRequest ──────────│ (hooks, devices, resctrl)
     │ ─ HostDone ────────────────────────────────────────────────────────►│
     │ ◄──────────────────────────────────────────── ListenerAt ───────────│ (seccomp notification)
     │ ─ ListenerTaken ───────────────────────────────────────────────────►│ (or not: then Listener brings it)
     │ ◄──────────────────────── Ready (marks; console) ───────────────────│
     │ ─ Start ───────────────────────────────────────────────────────────►│ (landlord only)
     │ ◄──────────────────────────────────── end of file ──────────────────│ execve closed it

Failed may come from either stage instead of anything else, and ends the conversation.
"""
