"""``mocokit VERB ...``: flags to options, errors to exit codes. No logic, and nothing heavy imported for --help."""

import argparse
import atexit
import difflib
import errno
import importlib
import json
import os
import signal
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import yaml

import mocokit
from mocokit.config import VERBS
from mocokit.console import complain, result, say
from mocokit.errors import Interrupted, UserError, reason_of
from mocokit.options import Fields, Option, fields_of, flag, grouped, help_of, load_config, merge, validate
from mocokit.recipes import recipe_names

SWITCHES = {  # what some verbs take beside their options: its help, and the verbs
    "overwrite": (
        "replace what an earlier command wrote",
        ("pretrain", "finetune", "report", "embed", "search", "select", "export"),
    ),
    "extend": ("go on from a finished run to more epochs, in a new directory beside it", ("pretrain",)),
}
METAVARS = {int: "N", float: "X"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        message = message.replace("ignored explicit argument", "takes no value, got")
        raise UserError(f"{message} (see {self.prog} --help)")


class _Formatter(argparse.HelpFormatter):
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Paragraphs, in which names stay whole."""
        return "\n\n".join(textwrap.fill(part, width, break_on_hyphens=False) for part in text.split("\n\n"))


def main_parser() -> argparse.ArgumentParser:
    """Everything before the verb, and the verb itself."""
    parser = _Parser(prog="mocokit", description="Learn image features without labels, and know how good they are.")
    parser.add_argument("--version", action="version", version=f"mocokit {mocokit.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, config in VERBS.items():
        verbs.add_parser(verb, help=config.__doc__, add_help=False)
    return parser


def verb_parser(verb: str) -> argparse.ArgumentParser:
    """Everything after the verb, derived from its configuration class."""
    fields = fields_of(VERBS[verb])
    needed = [option for option in fields.values() if option.required or option.positional]
    words = [_usage(option) for option in sorted(needed, key=lambda option: not option.positional)]
    parser = _Parser(
        prog=f"mocokit {verb}",
        usage=" ".join(["mocokit", verb, *words, "[options]"]),
        description="\n\n".join(texts_of(verb)),
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    for group, options in grouped(fields).items():
        place = parser.add_argument_group(group) if group else parser
        for option in options:
            _add_option(place, option)
    parser.add_argument("--config", metavar="FILE", help="YAML file of options; flags win over it")
    parser.add_argument("--print_config", action="store_true", help="print the options that are set, and exit")
    for name, text in switches_of(verb).items():
        parser.add_argument(flag(name), action="store_true", help=text)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")
    return parser


def texts_of(verb: str) -> list[str]:
    """What help and documentation say of a verb before its options: what it does, and where other values come from."""
    config = VERBS[verb]
    recipes = [f"Recipes: {', '.join(['auto', *recipe_names()])}."] if "recipe" in fields_of(config) else []
    return [str(config.__doc__), *filter(None, [getattr(config, "NOTE", "")]), *recipes]


def switches_of(verb: str) -> dict[str, str]:
    """Name and help of the switches that a verb takes beside its options."""
    return {name: text for name, (text, verbs) in SWITCHES.items() if verb in verbs}


def _usage(option: Option) -> str:
    name = option.name.upper()
    if not option.positional:
        return f"{option.short or flag(option.name)} {METAVARS.get(option.kind, name)}"
    return name if option.required else f"[{name}]"


def _add_option(parser: argparse._ActionsContainer, option: Option) -> None:
    help_text = help_of(option).replace("%", "%%")
    if option.positional:  # may be in --config instead; `_options` checks that none is missing
        count = "*" if option.kind is tuple else "?"
        parser.add_argument(option.name, metavar=option.name.upper(), help=help_text, nargs=count)
        return
    names = [name for name in (option.short, flag(option.name)) if name]
    if option.kind is bool:
        parser.add_argument(*names, action=argparse.BooleanOptionalAction, help=help_text)
    else:
        metavar = METAVARS.get(option.kind, option.name.upper())
        parser.add_argument(*names, type=option.kind, metavar=metavar, help=help_text)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of one command line, not yet checked; a `UserError` if a flag or its value is wrong.

    Without a verb it prints what there is, as ``--help``, and exits.
    """
    verb = main_parser().parse_args(argv[:1] or ["--help"]).verb
    parser, options = verb_parser(verb), fields_of(VERBS[verb])
    arguments, unknown = parser.parse_known_intermixed_args(argv[1:])
    if unknown:
        word = next((word for word in unknown if word.startswith("-")), unknown[0])
        near = difflib.get_close_matches(word.split("=")[0], map(flag, options), n=1)
        files = "; several files are not taken: name their folder" if os.path.exists(word) else ""
        if files and word.startswith("-"):
            files = f"; if it is the name of a file or folder, write ./{word}"
        switch = "; switches take no value, write --NAME or --no-NAME" if word in ("true", "false") else ""
        parser.error(f"unknown argument {word}{f'; did you mean {near[0]}?' if near else switch or files}")
    arguments.verb = verb
    return arguments


def _options(arguments: argparse.Namespace, fields: Fields) -> dict[str, Any]:
    """The options that are set by flag or file, checked before anything slow is imported."""
    given = {name: value for name in fields if (value := getattr(arguments, name)) not in (None, [])}
    file = load_config(arguments.config, fields) if arguments.config else {}
    options = merge(validate(given, fields), file)
    for name, option in fields.items():
        if option.required and name not in options:
            what = name.upper() if option.positional else flag(name)
            raise UserError(f"{arguments.verb}: no {what} given: {option.help} (see mocokit {arguments.verb} --help)")
    return options


def _check_surroundings() -> None:
    """What PyTorch needs before it can be imported."""
    try:
        os.getcwd()
        tempfile.gettempdir()
    except FileNotFoundError as error:
        if error.filename or "temporary" not in str(error):
            raise UserError("the current folder is gone; change to one that exists") from None
        raise UserError("no folder for temporary files can be written; make room, or set TMPDIR to one") from None


def _run(argv: Sequence[str], started: float) -> None:
    """Carry out one command line."""
    arguments = parse(argv)
    options = _options(arguments, fields_of(VERBS[arguments.verb]))
    if arguments.print_config:
        result(yaml.safe_dump(options, sort_keys=False).rstrip())
        return
    options |= {name: getattr(arguments, name) for name in switches_of(arguments.verb)}
    if arguments.verb in ("pretrain", "finetune"):
        options["started"] = started
    if arguments.verb == "pretrain" and "RANK" not in os.environ:  # of several processes the one that starts them
        say(f"mocokit {mocokit.__version__}: loading PyTorch")
    _check_surroundings()
    try:
        command = getattr(importlib.import_module(f"mocokit.commands.{arguments.verb}"), arguments.verb)
        found: Mapping[str, Any] = command(**options)
    except (MemoryError, RuntimeError) as error:
        text = str(error).replace("can't allocate memory", "out of memory")  # so torch has it of a CPU's
        if not isinstance(error, MemoryError) and "out of memory" not in text:
            raise
        what = ". ".join(text.splitlines()[0].split(". ")[:2]) if text else "out of memory"
        fields = fields_of(VERBS[arguments.verb])
        ways = [flag(name) for name in ("batch_size", "image_size", "limit", "device") if name in fields]
        raise UserError(f"{what}; try a smaller set, or {', '.join(ways) or 'a larger machine'}") from error
    except (ImportError, OSError) as error:
        if "failed to map segment" in str(error):  # as the system's loader says it of a library
            raise UserError(f"not enough memory to load PyTorch ({reason_of(error)}); look at ulimit -v") from error
        denied = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)  # a path, wherever it was named
        if isinstance(error, ImportError) or error.errno not in denied or not error.filename:
            raise
        raise UserError(f"{error.filename}: {error.strerror}") from error
    if arguments.json and found:  # of several processes only the first has a result
        result(json.dumps(found))


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM is what Ctrl-C is: whatever is being written is put away, and a line says that it is the end."""
    before = signal.getsignal(signal.SIGTERM)
    of_others = before in (None, signal.SIG_IGN) or threading.current_thread() is not threading.main_thread()
    if of_others or "RANK" in os.environ:  # of several processes the one that started them decides
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 done, 1 our fault, 2 the user's input is wrong, 130 interrupted."""
    started = time.perf_counter()
    if sys.stderr is None:  # closed; what is told must not come on stdout, or into the file that is opened next
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        with _ended_by_sigterm():
            _run(sys.argv[1:] if argv is None else argv, started)
        return 0
    except (UserError, Interrupted, KeyboardInterrupt) as error:
        if os.environ.get("RANK", "0") == "0" or not isinstance(error, Interrupted):  # which all processes are
            complain(f"mocokit: {' '.join(str(error).split()) or 'interrupted'}")
        code = 2 if isinstance(error, UserError) else 130
        if (group := sys.modules.get("mocokit.distributed")) and group.world_size() > 1:
            atexit._run_exitfuncs()  # experiment trackers send what they hold
            os._exit(code)  # threads of a process group that is not left may abort an interpreter that ends
        return code
