"""ttrpc, the protocol between containerd and its shims: gRPC's idea on a plain unix socket.

    frames        ten bytes of header and a payload: bytes to frames and back
    connection    who may say what now: frames to calls and answers, for both sides
    status        the codes an answer can carry
    client        a small blocking client, for tests, benches and tools

Only `client` owns a socket. Source: github.com/containerd/ttrpc, PROTOCOL.md.
"""
