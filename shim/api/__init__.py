"""The messages that a shim and containerd exchange, as typed records, and the codec for them.

    message      how a message class is declared, and the tables made of it
    codec        encode, decode, CodecError
    types        what several services share: Any, Timestamp, Mount, Envelope …
    task         the Task service, versions 2 and 3        sandbox   the Sandbox service
    events       what is published, and to whom            options   what a handler's configuration brings
    bootstrap    stdin and stdout of `start`               runtime_info   of `-info`
    metrics_v1   resource use on cgroup v1                 metrics_v2     on cgroup v2
    streaming    standard streams at the shim's socket     pod_config     of a pod that is left to its shim
    logs ps      services of our own: container logs, and all that a shim has
    ttrpc        the envelope of every call

Numbers and names are facts of the protocol; tests hold them against tables of it and the codec against
protobuf's own. Nothing here reads or writes a file descriptor.
"""
