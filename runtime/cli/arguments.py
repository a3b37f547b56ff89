"""The command line as values: options by table, read the way Go's `flag` and runc's command library read them.

Pure: texts in, a `Call` or a `UsageError` out. `-x` and `--x` are the same option, `--x value` and `--x=value`
too, `--` ends the options. For a verb that takes a command of its own (exec, ps) the first argument ends them
as well; elsewhere options may follow arguments. A table of our own because argparse costs 10 ms at each start.
"""

from __future__ import annotations

from runtime.errors import InvalidArgument
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

HELP_NAMES = ("help", "h")

TRUE = ("1", "t", "T", "TRUE", "true", "True")  # strconv.ParseBool
FALSE = ("0", "f", "F", "FALSE", "false", "False")
_INT64 = 1 << 63
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Option(Record):
    """One option: `names` with their dashes, the long one first; it is known by the long one without dashes.

    `kind` is "value" (text), "flag", "int" (64 bits), "seconds" (Go's "1m30s"), "list" or "ints" (each use adds
    one). Without a `default` an unused option is "", False, 0, 0.0 or an empty list. `hidden` keeps it out of
    the help text.
    """

    names: tuple[str, ...]
    kind: str = "value"
    metavar: str = "value"
    help: str = ""
    default: Any = None
    hidden: bool = False

    @property
    def name(self) -> str:
        """The name by which a verb asks for it."""
        return self.names[0].lstrip("-")


class Verb(Record):
    """A verb: what it is called with, how many arguments it takes, and the function that does it.

    `usage` is what stands behind the name ("<container-id> [signal]"), `summary` the line in the list of verbs,
    `about` the rest of its help text. `most` None is any number. `own_command`: the first argument ends the
    options, because what follows belongs to a command of the user's.
    """

    name: str
    usage: str
    summary: str
    options: tuple[Option, ...]
    run: Callable[[Call], int]
    least: int = 0
    most: int | None = 0
    own_command: bool = False
    about: str = ""


class Globals(Record):
    """The options before the verb, completed. `root` is absolute; `root_given` says that it is no default."""

    root: str
    root_given: bool = False
    log: str = ""
    log_format: str = "text"
    debug: bool = False
    systemd_cgroup: bool = False
    rootless: str = "auto"


class Call(Record):
    """One use of a verb. `given` are the names of the options that were on the command line."""

    verb: Verb
    options: dict[str, Any]
    arguments: list[str]
    globals: Globals
    given: frozenset[str] = frozenset()
    program: str = "manor-oci"


class UsageError(InvalidArgument):
    """The command line is not one that the verb takes; the user is to be shown how it is used."""


class HelpWanted(Exception):
    """`--help` was among the options."""


class Parsed(Record):
    """What `parse` found: the value of every option by name, which of them were given, and the arguments."""

    options: dict[str, Any]
    given: frozenset[str]
    arguments: list[str]


def parse(words: Sequence[str], options: tuple[Option, ...], first_ends: bool) -> Parsed:
    """Read `words` by the table `options`; with `first_ends` the first argument ends the options.

    UsageError in Go's words for an option that is unknown, lacks its value or has one of the wrong kind.
    HelpWanted where `--help` or `-h` stands for an option.
    """
    by_name = {name.lstrip("-"): option for option in options for name in option.names}
    values: dict[str, Any] = {}
    arguments: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "--":
            arguments += words[position:]
            break
        is_option = len(word) > 1 and word[0] == "-"
        name, has_value, value = _split(word) if is_option else ("", False, "")
        option = by_name.get(name)
        if not is_option or (option is None and arguments and name not in HELP_NAMES):
            arguments.append(word)  # as with runc, "-9" behind the id is a signal
            if first_ends:
                arguments += words[position:]
                break
            continue
        if option is None:
            if name in HELP_NAMES:
                raise HelpWanted
            raise UsageError(f"flag provided but not defined: -{name}")
        if option.kind != "flag" and not has_value:
            if position == len(words):
                raise UsageError(f"flag needs an argument: -{name}")
            value = words[position]
            position += 1
        made = _convert(option.kind, name, value if has_value or option.kind != "flag" else "true")
        if option.kind in ("list", "ints"):
            made = [*values.get(option.name, ()), made]
        values[option.name] = made
    return Parsed({**_defaults(options), **values}, frozenset(values), arguments)


def _split(word: str) -> tuple[str, bool, str]:
    """("x", True, "1") of "--x=1"."""
    stripped = word[2:] if word.startswith("--") else word[1:]
    if stripped[:1] in ("", "-", "="):
        raise UsageError(f"bad flag syntax: {word}")
    name, sign, value = stripped.partition("=")
    return name, bool(sign), value


def _defaults(options: tuple[Option, ...]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for option in options:
        if option.default is not None:
            made[option.name] = option.default
        elif option.kind in ("list", "ints"):
            made[option.name] = []  # a fresh one: it may be added to
        else:
            made[option.name] = {"flag": False, "int": 0, "seconds": 0.0}.get(option.kind, "")
    return made


def _convert(kind: str, name: str, value: str) -> Any:
    if kind == "flag":
        if value in TRUE or value in FALSE:
            return value in TRUE
        raise UsageError(f'invalid boolean value "{value}" for -{name}: parse error')
    if kind in ("int", "ints"):
        return _integer(name, value)
    if kind == "seconds":
        return _seconds(name, value)
    return value


def _integer(name: str, value: str) -> int:
    """As strconv.ParseInt with base 0 reads it: "0x10" and "010" are 16 and 8."""
    octal = len(value) > 1 and value.lstrip("+-")[:1] == "0" and value.lstrip("+-").isdecimal()
    try:
        number = int(value, 8 if octal else 0)
    except ValueError:
        raise UsageError(f'invalid value "{value}" for flag -{name}: parse error') from None
    if not -_INT64 <= number < _INT64:
        raise UsageError(f'invalid value "{value}" for flag -{name}: value out of range')
    return number


def _seconds(name: str, value: str) -> float:
    """As time.ParseDuration reads it: "1.5s", "1m30s", "100ms"; "0" needs no unit."""
    rest = value.lstrip("+-") if value[:1] in ("+", "-") else value
    total = 0.0
    if rest != "0":
        if not rest:
            raise UsageError(f'invalid value "{value}" for flag -{name}: parse error')
        while rest:
            digits = len(rest) - len(rest.lstrip("0123456789."))
            unit = rest[digits:]
            unit = unit[: len(unit) - len(unit.lstrip("nuµmsh"))]
            try:
                total += float(rest[:digits]) * _UNITS_S[unit]
            except (ValueError, KeyError):
                raise UsageError(f'invalid value "{value}" for flag -{name}: parse error') from None
            rest = rest[digits + len(unit) :]
    return -total if value[:1] == "-" else total


def check_count(verb: Verb, program: str, arguments: Sequence[str]) -> None:
    """UsageError, in runc's words, unless `verb` takes that many arguments."""
    count, least, most = len(arguments), verb.least, verb.most
    if least == most and count != least:
        bound = f"exactly {least}"
    elif count < least:
        bound = f"a minimum of {least}"
    elif most is not None and count > most:
        bound = f"a maximum of {most}"
    else:
        return
    raise UsageError(f'{program}: "{verb.name}" requires {bound} argument(s)')
