"""The Container Runtime Interface: what a kubelet, or crictl, says to a container runtime.

api/      its messages and services, generated from api.proto
client    a small synchronous client, for tests, benches and tools
"""
