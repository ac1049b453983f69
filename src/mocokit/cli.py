"""``mocokit VERB ...``: flags to options, errors to exit codes. No logic, and nothing heavy imported for --help."""

import argparse
import difflib
import importlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NoReturn

import yaml

from mocokit.config import FIELDS, Fields, KnnConfig, fields_of, flag, kind_of, load_config, merge, validate
from mocokit.errors import Interrupted, UserError


@dataclass(frozen=True)
class Verb:
    """``module:function`` takes the options as keywords and returns the result object."""

    call: str
    fields: Fields
    positional: tuple[str, ...]
    summary: str
    trains: bool = False  # takes --config, --overwrite and the time the command began


VERBS = {
    "pretrain": Verb(
        "pretrain:pretrain", FIELDS, ("data",), "learn an encoder from images without labels", trains=True
    ),
    "knn": Verb(
        "knn:knn",
        fields_of(KnnConfig),
        ("run", "data"),
        "kNN accuracy beside random initialisation and pixels",
    ),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _boolean(text: str) -> bool:
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return values[text.lower()]


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, derived from the configuration classes."""
    parser = _Parser(
        prog="mocokit", description="Learn image features without labels, and know how good they are."
    )
    parser.add_argument("--version", action="version", version=f"mocokit {version('mocokit')}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        positional = " ".join(p.upper() for p in verb.positional)
        sub = verbs.add_parser(
            name,
            help=verb.summary,
            description=verb.summary[0].upper() + verb.summary[1:] + ".",
            usage=f"mocokit {name} {positional} [options]",
            allow_abbrev=False,
        )
        _add_options(sub, verb)
    return parser


def _add_options(parser: argparse.ArgumentParser, verb: Verb) -> None:
    for name, f in verb.fields.items():
        kind, choices = kind_of(f), f.metadata["choices"]
        help_text = f.metadata["help"] + (f" ({', '.join(choices)})" if choices else "")
        if name in verb.positional:
            parser.add_argument(
                name, metavar=name.upper(), help=help_text, nargs="?" if verb.trains else None
            )
        else:
            metavar = {int: "N", float: "X", bool: "true|false"}.get(kind, name.upper())
            parse = _boolean if kind is bool else kind
            parser.add_argument(flag(name), type=parse, metavar=metavar, help=help_text.replace("%", "%%"))
    if verb.trains:
        parser.add_argument("--config", metavar="FILE", help="YAML file of options; flags win over it")
        parser.add_argument(
            "--print_config", action="store_true", help="print the options that are set, and exit"
        )
        parser.add_argument("--overwrite", action="store_true", help="replace an existing run directory")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")


def _options(verb: Verb, arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that are set, by flag or by file; checked before anything slow is imported."""
    given = validate({n: getattr(arguments, n) for n in verb.fields}, verb.fields)
    if not verb.trains:
        return given
    options = merge(given, load_config(arguments.config) if arguments.config else {})
    if "data" not in options:
        raise UserError(
            f"{arguments.verb}: no DATA given; name digits, cifar10, a folder or an archive of images"
        )
    return options


def run(argv: Sequence[str], started: float) -> int:
    """Carry out one command line.

    Raises:
        UserError, Interrupted: as the command does.
    """
    arguments, unknown = build_parser().parse_known_args(argv)
    verb = VERBS[arguments.verb]
    if unknown:
        near = difflib.get_close_matches(unknown[0].split("=")[0], map(flag, verb.fields), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"unknown argument {unknown[0]}{hint} (see mocokit {arguments.verb} --help)")
    options = _options(verb, arguments)
    if verb.trains and arguments.print_config:
        print(yaml.safe_dump(options, sort_keys=False), end="")
        return 0
    if verb.trains:
        options |= {"overwrite": arguments.overwrite, "started": started}
    module, function = verb.call.split(":")
    result: Mapping[str, Any] = getattr(importlib.import_module(f"mocokit.commands.{module}"), function)(
        **options
    )
    if arguments.json:
        print(json.dumps(result))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 done, 1 our fault, 2 the user's input is wrong, 130 interrupted."""
    started = time.perf_counter()
    try:
        return run(sys.argv[1:] if argv is None else argv, started)
    except UserError as error:
        print(f"mocokit: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt) as stopped:
        print(f"mocokit: {str(stopped) or 'interrupted'}", file=sys.stderr)
        return 130
