"""The shim: what containerd starts, talks to and watches; one process holds one pod.

A map, in the order of a pod's life.

How a shim comes to be, and ends:

    launcher                       what containerd executes: hands its arguments and descriptors to the warden
    begin                          from a launcher's child to a warden's process
    warden hot                     one per node and key, has everything imported: accepts and forks, nothing else;
                                   which of it a shim runs
    bootstrap start_request        containerd's command line, and one launcher's request as its shim sees it
    daemon                         the forked process becoming a shim: wiring, start, delete, -info
    delete info                    the actions of the same names: after a shim that is dead; what `-info` prints
    options toml                   a handler's options, from whichever form they come in; TOML text
    sockets                        a pod's socket, and whether a shim lives behind it
    deed                           whose a pod's state directory is: a lock, and a note
    systemd                        the way to systemd, where cgroups are its units

Its loop, and its door:

    loop tasks                     one epoll, one thread; drives the runtime's generators
    ttrpc/                         frames and connections without I/O; a small client
    api/                           the messages, and the codec for them
    server callers                 who is connected, calls to handlers, answers back; the bounds of all callers
    open_calls streams errors      calls that take a while; calls that stream; how a failure is told
    task_service                   containerd's Task API, a few lines a method
    sandbox_service log_service    its Sandbox API, for pods that are left to us; the calls about container logs
    ps_service                     all that the pod has, in one answer, for `manor ps`

A pod and what is in it:

    pod container process          what its containers share; one from Create to Delete; its init and execs
    rootfs_mounts mapped_mounts    the mounts that make a root file system; shown with the ids of a user namespace
    exits                          the only place that reaps
    leaves                         an exec in a cgroup of its own: its kill, and what becomes of the cgroup
    events backlog                 what containerd is told, and in which order; what of it must wait on disk
    journal                        how each process ended, on record before anybody is told
    accounts stats oom             what a container has used, as a message, and what it was killed for
    log spans version              lines for whoever runs the node; times, for the scribe; which Manor this is

A pod that is left to us (`sandboxer = "shim"`):

    sandbox                        its states, what it holds, who waits for its end
    pod_plan                       what it is to be, and what that makes of configs (pure)
    pod_info                       what containerd, NRI plugins and crictl are told of it
    pod_namespaces pod_files       what it has: namespaces without a process; /etc/hosts and the like, /dev/shm
    landlord landlord_program      its first process, where containers share a PID namespace; 36 bytes of program

What processes say:

    stdio flow console             fifos and files, and what is on its way there; terminals
    destinations                   where streams are to go, read from a path or URI
    sinks                          the shim's side of a log, which somebody else reads:
    writer crilog                  a process of ours that writes files; the lines of a container log
    logger                         a client's program (`binary://`)
    exchange stream_io             streams that clients open at the shim's door, and the pipes of a process behind them

Beside it, in processes of their own:

    scribe                         one per node: exports what shims tell of their operations
    install link_order             writes the programs of a node, with the modules of a command in the order they run
    fingerprint                    what tells one state of our code from another

Everything is loaded before the fork and nothing after it. No asyncio, protobuf or typing in here.
"""
