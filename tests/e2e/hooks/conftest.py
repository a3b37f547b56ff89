"""The command line of both runtimes."""

from __future__ import annotations

from tests.e2e.oci.conftest import Oci, oci, programs, pytest_collection_modifyitems

__all__ = ["Oci", "oci", "programs", "pytest_collection_modifyitems"]
