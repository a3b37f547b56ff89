"""The options before the verb: their table, and what they come to on this machine."""

from __future__ import annotations

import os

from runtime.cli.arguments import FALSE, TRUE, Globals, Option
from runtime.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cli.arguments import Parsed

DEFAULT_ROOT = "/run/manor-oci"
_WHOLE_RANGE = ["0", "0", "4294967295"]  # the uid_map of the first user namespace

OPTIONS = (
    Option(("--debug",), "flag", help="enable debug logging"),
    Option(("--log",), help="set the log file to write logs to (default is '/dev/stderr')"),
    Option(("--log-format",), default="text", help="set the log format ('text' (default), or 'json')"),
    Option(
        ("--root",),
        help="root directory for storage of container state (this should be located in tmpfs)",
        default=DEFAULT_ROOT,
    ),
    Option(
        ("--systemd-cgroup",),
        "flag",
        help='enable systemd cgroup support, expects cgroupsPath to be of form "slice:prefix:name" '
        'for e.g. "system.slice:manor:434234"',
    ),
    Option(
        ("--rootless",), default="auto", help="ignore cgroup permission errors ('true', 'false', or 'auto')"
    ),
    Option(("--fail-at",), "list", "STAGE.STEP[:ERRNO]", "let that step fail (root only)", hidden=True),
    Option(("--delay-at",), "list", "STAGE.STEP:SECONDS", "let that step wait (root only)", hidden=True),
    Option(("--version", "-v"), "flag", help="print the version"),
)


def complete(parsed: Parsed) -> Globals:
    """The settings that `parsed` asks for. InvalidArgument for a value that is none, OSError for a bad root."""
    asked = parsed.options
    if asked["log-format"] not in ("", "text", "json"):
        raise InvalidArgument(f"invalid log-format: {asked['log-format']}")
    given = "root" in parsed.given
    return Globals(
        root=_absolute_root(asked["root"]) if given else _default_root(),
        root_given=given,
        log=asked["log"],
        log_format=asked["log-format"] or "text",
        debug=asked["debug"],
        systemd_cgroup=asked["systemd-cgroup"],
        rootless=_bool_or_auto(asked["rootless"]),
    )


def _absolute_root(path: str) -> str:
    root = os.path.abspath(path)
    if root in ("/", "//"):
        raise InvalidArgument("Option --root argument should not be set to /")
    return root


def _default_root() -> str:
    """/run/manor-oci, or below $XDG_RUNTIME_DIR for who is not the machine's root."""
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR", "")
    if not runtime_dir or not (os.geteuid() != 0 or _in_user_namespace()):
        return DEFAULT_ROOT
    root = f"{runtime_dir}/manor-oci"
    os.makedirs(root, 0o700, exist_ok=True)
    # Sticky, or whoever cleans up XDG_RUNTIME_DIR may take it for forgotten (XDG Base Directory specification).
    os.chmod(root, 0o1700)
    return root


def _in_user_namespace() -> bool:
    """True below the first user namespace, unless $USER says root: then it is somebody's whole machine."""
    if os.environ.get("USER") == "root":
        return False
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return file.read().split() != _WHOLE_RANGE
    except OSError:
        return False  # a kernel without user namespaces


def _bool_or_auto(value: str) -> str:
    if value in ("", "auto"):
        return "auto"
    if value in TRUE:
        return "true"
    if value in FALSE:
        return "false"
    raise InvalidArgument(f"invalid value {value!r} for --rootless: it must be true, false or auto")


def is_rootless(settings: Globals) -> bool:
    """Whether errors of permission on cgroups are to be put up with, as runc's --rootless has it."""
    if settings.rootless != "auto":
        return settings.rootless == "true"
    if os.geteuid() != 0:
        return True
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return file.read().split() != _WHOLE_RANGE
    except OSError:
        return False
