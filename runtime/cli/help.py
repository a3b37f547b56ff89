"""The help texts, in runc's layout, written from the same tables that the parser reads.

Imported only when somebody asks for help, or has mistyped.
"""

from __future__ import annotations

import sys

from runtime.cli.output import SPEC_VERSION
from runtime.cli.settings import OPTIONS
from runtime.cli.verbs import TABLE, find
from runtime.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cli.arguments import Option

TITLE = "Open Container Initiative runtime"
_HELP_LINE = ("--help, -h", "show help")
_ABOUT = """\
Containers are configured using bundles. A bundle for a container is a directory
that includes a specification file named "config.json" and a root filesystem.
The root filesystem contains the contents of the container.

To start a new instance of a container:

    # {program} run [ -b bundle ] <container-id>

Where "<container-id>" is your name for the instance of the container that you
are starting. The name you provide for the container instance must be unique on
your host. Providing the bundle directory using "-b" is optional. The default
value for "bundle" is the current directory.
"""


def text(topic: str, program: str) -> str | None:
    """What to print for `topic`: a verb's name, "version", or "" for the program. None for a topic that is none."""
    if topic in ("", "help", "h"):
        return _program(program)
    if topic == "version":
        return version(program)
    return _verb(topic, program)


def version(program: str) -> str:
    """What `--version` prints."""
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{program} version {VERSION}\nspec: {SPEC_VERSION}\npython: {python}\n"


def _program(program: str) -> str:
    verbs = [(name, summary) for name, (_module, summary) in TABLE.items()]
    verbs.append(("help, h", "shows a list of commands or help for one command"))
    return (
        f"NAME:\n   {program} - {TITLE}\n\n{_ABOUT.format(program=program)}\n"
        f"USAGE:\n   {program} [global options] command [command options] [arguments...]\n\n"
        f"VERSION:\n   {VERSION}\n\n"
        f"COMMANDS:\n{_columns(verbs)}\n"
        f"GLOBAL OPTIONS:\n{_columns([*(_line(each) for each in OPTIONS if not each.hidden), _HELP_LINE])}"
    )


def _verb(name: str, program: str) -> str | None:
    verb = find(name)
    if verb is None:
        return None
    options = [_line(option) for option in verb.options if not option.hidden]
    usage = f"{program} {name}{' [command options]' if options else ''} {verb.usage}".rstrip()
    made = f"NAME:\n   {program} {name} - {verb.summary}\n\nUSAGE:\n   {usage}\n"
    if verb.about:
        made += f"\nDESCRIPTION:\n   {verb.about}\n"
    if options:
        made += f"\nOPTIONS:\n{_columns(options)}"
    return made


def _line(option: Option) -> tuple[str, str]:
    value = "" if option.kind == "flag" else f" {option.metavar}"
    names = ", ".join(f"{name}{value}" for name in option.names)
    if option.default in (None, ""):
        return names, option.help
    default = (
        f"{option.default:g}s" if option.kind == "seconds" else f'"{option.default}"'
    )  # as they are typed
    return names, f"{option.help} (default: {default})"


def _columns(rows: list[tuple[str, str]]) -> str:
    width = max(len(left) for left, _right in rows) + 2
    return "".join(f"   {left:<{width}}{right}\n" for left, right in rows)
