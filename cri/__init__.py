"""The Container Runtime Interface: what a kubelet, or crictl, says to a container runtime.

api/      its messages and services, generated from api.proto
seccomp   the profile of a container that asks for the runtime's default, from default_seccomp.json
client    a small synchronous client, for tests, benches and tools
"""
