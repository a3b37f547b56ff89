"""SIGKILL of containerd, warden and shims under a mixed load, at random moments and at marked points.

    python -m tests.sweeps --containerd 2.3 --kills containerd=100,warden=50,shim=100 --seed 1 --json result.json

It is a program, and not a test, because its CRI client brings threads: `tests/e2e/sweeps` runs a slice of it,
`make soak` all of it. On runc (`--handlers runc`) it says what containerd loses by itself.

    report      what was done and what was wrong, as JSON
    world       one node: its containerd, its clients, and whether it is being disturbed
    subjects    containers whose exit code and lines are known before
    load        threads that use the node as a kubelet does, and the containers that must outlive everything
    marks       waiting for the moment to kill at
    sweep       what the three sweeps have in common; kills has those of containerd and wardens, shims that of shims
"""
