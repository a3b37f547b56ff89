"""features: what this runtime can do, as the OCI features document (runtime-spec, features.md)."""

from __future__ import annotations

from runtime import features
from runtime.cli.arguments import Verb
from runtime.cli.output import indented, say
from runtime.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.cli.arguments import Call

_VERSION_ANNOTATION = "io.manor.version"


def document() -> dict[str, Any]:
    """The features document."""
    return {**features.document(), "annotations": {_VERSION_ANNOTATION: VERSION}}


def show_features(_call: Call) -> int:
    """Print the document."""
    say(indented(document(), "    ") + "\n")
    return 0


VERBS = {
    "features": Verb(
        "features",
        "",
        "show the enabled features",
        (),
        show_features,
        about="The result is JSON, as features.md of the OCI runtime specification defines it.",
    )
}
