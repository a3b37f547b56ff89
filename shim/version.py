"""What this runtime is called."""

from runtime.version import VERSION

__all__ = ["RUNTIME_NAME", "VERSION"]

RUNTIME_NAME = "io.containerd.manor.v2"
