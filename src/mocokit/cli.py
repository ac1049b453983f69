"""``mocokit VERB ...``: flags to options, errors to exit codes. No logic, and nothing heavy imported for --help."""

import argparse
import dataclasses
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

from mocokit import config
from mocokit.errors import Interrupted, UserError
from mocokit.options import Fields, fields_of, flag, kind_of, load_config, merge, validate


@dataclass(frozen=True)
class Verb:
    """``module:function`` takes the options as keywords and returns the result object."""

    call: str
    options: type
    positional: tuple[str, ...]
    summary: str
    overwrites: bool = False  # takes --overwrite
    timed: bool = False  # takes the time the command began

    @property
    def fields(self) -> Fields:
        """Its options by name."""
        return fields_of(self.options)


BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
RUN_DATA = ("run", "data")
VERBS = {
    "pretrain": Verb(
        "pretrain:pretrain",
        config.PretrainConfig,
        ("data",),
        "learn an encoder from images without labels",
        overwrites=True,
        timed=True,
    ),
    "knn": Verb(
        "knn:knn", config.KnnConfig, RUN_DATA, "kNN accuracy beside random initialisation and pixels"
    ),
    "probe": Verb("probe:probe", config.ProbeConfig, RUN_DATA, "linear classification on frozen features"),
    "finetune": Verb(
        "finetune:finetune",
        config.FinetuneConfig,
        RUN_DATA,
        "train encoder and classifier on labels",
        overwrites=True,
    ),
    "scorecard": Verb(
        "scorecard:scorecard", config.ScorecardConfig, RUN_DATA, "how good features are, without labels"
    ),
    "embed": Verb("embed:embed", config.EmbedConfig, RUN_DATA, "write a table of features", overwrites=True),
    "search": Verb(
        "search:search",
        config.SearchConfig,
        ("features", "queries"),
        "find similar images and near-duplicates",
        overwrites=True,
    ),
    "export": Verb(
        "export:export", config.ExportConfig, ("run",), "write the encoder for timm or ONNX", overwrites=True
    ),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _boolean(text: str) -> bool:
    if text.lower() not in BOOLEANS:
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return BOOLEANS[text.lower()]


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
        help_text = (f.metadata["help"] + (f" ({', '.join(choices)})" if choices else "")).replace("%", "%%")
        if name in verb.positional:
            # Any of them may be in --config instead; `_options` tells what is missing.
            count = "*" if kind is tuple else "?"
            parser.add_argument(name, metavar=name.upper(), help=help_text, nargs=count)
        else:
            metavar = {int: "N", float: "X", bool: "true|false"}.get(kind, name.upper())
            names = [s for s in (f.metadata["short"], flag(name)) if s]
            parse = _boolean if kind is bool else kind
            parser.add_argument(*names, dest=name, type=parse, metavar=metavar, help=help_text)
    parser.add_argument("--config", metavar="FILE", help="YAML file of options; flags win over it")
    parser.add_argument(
        "--print_config", action="store_true", help="print the options that are set, and exit"
    )
    if verb.overwrites:
        parser.add_argument("--overwrite", action="store_true", help="replace what an earlier command wrote")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")


def _spelled_out(argv: Sequence[str]) -> list[str]:
    """``--from-scratch`` alone means true: options that are off by default need no value."""
    switches = {flag(n) for v in VERBS.values() for n, f in v.fields.items() if f.default is False}
    following = [*argv, ""][1:]
    return [
        f"{word}=true" if word in switches and after.lower() not in BOOLEANS else word
        for word, after in zip(argv, following, strict=False)
    ]


def _options(verb: Verb, arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that are set, by flag or by file; checked before anything slow is imported."""
    given = {n: value for n in verb.fields if (value := getattr(arguments, n)) not in (None, [])}
    file = load_config(arguments.config, verb.fields) if arguments.config else {}
    options = merge(validate(given, verb.fields), file)
    for name, f in verb.fields.items():
        required = name in verb.positional or verb.options is not config.PretrainConfig
        if name not in options and f.default is dataclasses.MISSING and required:
            what = name.upper() if name in verb.positional else flag(name)
            raise UserError(
                f"{arguments.verb}: no {what} given: {f.metadata['help']} (see mocokit {arguments.verb} --help)"
            )
    return options


def run(argv: Sequence[str], started: float) -> int:
    """Carry out one command line.

    Raises:
        UserError, Interrupted: as the command does.
    """
    arguments, unknown = build_parser().parse_known_args(_spelled_out(argv))
    verb = VERBS[arguments.verb]
    for name in verb.positional:
        if kind_of(verb.fields[name]) is tuple:  # argparse takes only those before the first flag
            words = [word for word in unknown if not word.startswith("-")]
            setattr(arguments, name, [*getattr(arguments, name), *words])
            unknown = [word for word in unknown if word.startswith("-")]
    if unknown:
        near = difflib.get_close_matches(unknown[0].split("=")[0], map(flag, verb.fields), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"unknown argument {unknown[0]}{hint} (see mocokit {arguments.verb} --help)")
    options = _options(verb, arguments)
    if arguments.print_config:
        print(yaml.safe_dump(options, sort_keys=False), end="")
        return 0
    if verb.overwrites:
        options["overwrite"] = arguments.overwrite
    if verb.timed:
        options["started"] = started
    module, function = verb.call.split(":")
    call = getattr(importlib.import_module(f"mocokit.commands.{module}"), function)
    result: Mapping[str, Any] = call(**options)
    if arguments.json and result:  # of several processes only the first has a result
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
