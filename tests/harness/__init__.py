"""The bench on which Manor is tried: what the tests, the demo and the benchmarks share.

What a machine needs, and what is run on it:

    paths               the checkout, the cache, scratch space
    tools venv          what a bare machine lacks: programs by version, Python environments
    check soak          `make test` and its parts; `make soak`, the long checks
    init                a parent that reaps, for all that a run of tests leaves without one
    seconds             how long the tests of each directory took
    commands            programs that are run to their end, which is seen at once
    measured            what those have measured
    every_test          what holds for every test: a deadline, and no thread left behind

Where a pod is run:

    handlers            the runtimes that can be put under test, in one place
    images registry     small images, made here and served on the loopback
    programs/           in C: the pause program, and what tests and benchmarks run in containers
    cni                 a network of an instance's own
    containerd          a private containerd: own root, state, socket, bridge and cgroup parent
    crictl task         two clients, as functions: what a kubelet asks; a shim's own door
    bundles             OCI bundles, for the runtime without containerd

What came of it:

    instances           names, owners, and how everything of an instance is ended
    leaks               what exists on the machine that an instance answers for
    hot_code recording  which code runs in a shim, written down for its warden
    mountinfo           what is mounted on the host
    opens processes     which files which processes open; what /proc says of one
    upgrades            an installation that is replaced by another version
    waiting beside      asking until it is true, with a deadline that no healthy machine meets; doing so in a thread

Nothing in here knows what Manor does: it proves itself on runc first.
"""
