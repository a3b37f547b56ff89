"""CRI v1 as Python modules, generated from `api.proto` by `python -m tests.wire.regenerate`; not edited by hand.

`api_pb2` has the messages, `api_pb2_grpc` the services. The proto is registered as `cri/api/api.proto`,
its package is `runtime.v1`: the names on the wire are those of Kubernetes.
"""
