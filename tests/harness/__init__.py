"""The bench on which Manor is tried: what the tests, the demo and the benchmarks share.

    paths                    the checkout, the cache, scratch space
    tools  venv              what a bare machine lacks: programs by version, Python environments
    handlers                 the runtimes that can be put under test, in one place
    images  registry         small images, made here and served on the loopback
    cni                      a network of an instance's own
    containerd               a private containerd: own root, state, socket, bridge and cgroup parent
    crictl  ctr              the two clients, as functions
    leaks                    what exists on the machine that an instance answers for
    instances                names, owners, and how everything of an instance is ended

Nothing in here knows what Manor does: it proves itself on runc first.
"""
