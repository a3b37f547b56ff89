"""The verbs: create, load, start, exec, kill, pause, resume, update, delete.

Each takes typed requests, decides and refuses first, then acts with every acquisition undone on failure.
What must wait is a generator (`runtime.waiting`); the rest are plain functions that never block.

    create apart         makes a container; in a child, for whoever must not read its config itself
    load start exec kill delete update    the other verbs; update has pause and resume
    kill_tree            of an exec that has no cgroup of its own: all that came of it
    container_plan process_plan    what is decided for a container, and for each of its processes (mostly pure)
    attend               what a container asks of the host while it is made
    lifecycle_hooks listener gate    its hooks, its seccomp agent, the gate where its init waits to be started
"""
