"""From the words of a command line to the verb that they ask for, and from what goes wrong to an exit code."""

from __future__ import annotations

import _signal
import os
import sys

from runtime.cli import logs, settings
from runtime.cli.arguments import Call, HelpWanted, UsageError, check_count, parse
from runtime.cli.output import say
from runtime.cli.verbs import find, late
from runtime.errors import ManorError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.cli.arguments import Globals

UNKNOWN_VERB = 3  # the exit code of runc's command library


def main(words: Sequence[str], program: str) -> int:
    """Run the verb that `words` (without the program's name) ask for; the exit code."""
    try:
        return _main(words, program)
    except KeyboardInterrupt:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
        os.kill(os.getpid(), _signal.SIGINT)  # so that a shell sees what ended us
        return 130
    except BrokenPipeError:
        return 1  # whoever read our output has gone, and knows why
    except (ManorError, OSError) as error:
        return logs.fatal(error)
    except Exception as error:
        if logs.log.debugging:
            sys.excepthook(type(error), error, error.__traceback__)
        return logs.fatal(f"internal error: {logs.explain(error)}")


def _main(words: Sequence[str], program: str) -> int:
    try:
        parsed = parse(words, settings.OPTIONS, first_ends=True)
    except HelpWanted:
        return _help("", program)
    except UsageError as error:
        return _misused(f"Incorrect Usage. {error}\n\n", "", program, error)
    if parsed.options["version"]:
        return _help("version", program)
    given = settings.complete(parsed)
    logs.log.open(given)
    if parsed.options["fail-at"] or parsed.options["delay-at"]:
        late("runtime.faults").plant_what_is_asked(parsed.options["fail-at"], parsed.options["delay-at"])
    if not parsed.arguments:
        return _help("", program)
    return _run(parsed.arguments[0], parsed.arguments[1:], given, program)


def _run(name: str, words: list[str], given: Globals, program: str) -> int:
    if name in ("help", "h"):
        return _help(words[0] if words else "", program)
    verb = find(name)
    if verb is None:
        return _help(name, program)
    try:
        parsed = parse(words, verb.options, verb.own_command)
    except HelpWanted:
        return _help(name, program)
    except UsageError as error:
        return _misused(f"Incorrect Usage: {error}\n\n", name, program, error)
    try:
        check_count(verb, program, parsed.arguments)
    except UsageError as error:
        return _misused("Incorrect Usage.\n\n", name, program, error)
    logs.debug(f"{' '.join([name, *parsed.arguments[:1]])}: root directory {given.root}")
    return verb.run(Call(verb, parsed.options, parsed.arguments, given, parsed.given, program))


def _help(topic: str, program: str) -> int:
    """Print the help text for a verb, or of the program. A topic that is no verb: runc's message and code."""
    text: str | None = late("runtime.cli.help").text(topic, program)
    if text is None:
        return logs.fatal(f"No help topic for '{topic}'", UNKNOWN_VERB)
    say(text)
    return 0


def _misused(head: str, topic: str, program: str, error: UsageError) -> int:
    say(head + late("runtime.cli.help").text(topic, program))
    return logs.fatal(error)
