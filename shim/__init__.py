"""The shim: what containerd starts, talks to and watches; one process holds one pod.

A map, in the order of a pod's life:

    launcher        what containerd executes: hands its arguments and descriptors to the warden
    warden          one per node and key, has everything imported: accepts and forks, nothing else
    daemon          the forked process becoming a shim: wiring, start, delete, -info
    loop            one epoll, one thread; drives the runtime's generators
    ttrpc/          frames and connections without I/O; a small client
    api/            the messages, and the codec for them
    task_service    containerd's Task API, a few lines a method; container, process: the work behind it
    sandbox_service containerd's Sandbox API, for pods that are left to us; sandbox: the pod's states; pod_plan: what it
                    is to be, and what that makes of configs (pure); pod_namespaces, pod_files, landlord: what it has
    exits           the only place that reaps; events: what containerd is told, and in which order
    stdio console   fifos, files and terminals; rootfs_mounts, oom, stats: one kernel concern each

Everything is loaded before the fork and nothing after it. No asyncio, protobuf or typing in here.
"""
