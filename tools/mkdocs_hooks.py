"""Pages of the site that are made from the code: the guide from README.md, the options of each verb, the API."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import mocokit
from mocokit.cli import switches_of, texts_of
from mocokit.config import VERBS
from mocokit.options import Option, fields_of, flag, grouped

ROOT = Path(mocokit.__file__).parents[2]
TYPES = {int: "whole number", float: "number", bool: "switch", str: "text", tuple: "text, several"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages (a hook of MkDocs)."""
    pages = {"index.md": guide(), "api.md": api()} | {f"options/{verb}.md": options(verb) for verb in VERBS}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def guide() -> str:
    """README.md with links that fit the site; files that are not on the site are named without a link."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    def fitting(link: re.Match[str]) -> str:
        name, target = link.groups()
        if target.startswith(("https:", "http:", "#")):
            return link[0]
        return f"[{name}]({target[5:]})" if re.match(r"docs/[^#]+\.(md|png)(#|$)", target) else f"`{name}`"

    return re.sub(r"\[([^]]+)\]\(([^)]+)\)", fitting, text)


def options(verb: str) -> str:
    """A table of all options of a verb."""
    fields = fields_of(VERBS[verb])
    own = [option for option in fields.values() if not option.positional]
    example = next((option for option in own if "_" in option.name and option.kind in (int, float)), own[0])
    name, value = example.name, "true" if example.kind is bool else (example.has_default and example.default) or 64
    arguments = "".join(f"{name.upper()} " for name, option in fields.items() if option.positional)
    rows = {group.capitalize(): [*map(_row, options)] for group, options in grouped(fields).items()}
    more = ["| `--config FILE` | YAML file | | Options from a file, such as a run's `config.yaml`; flags win. |"]
    more += ["| `--print_config` | switch | off | Print the options that are set, and exit. |"]
    for switch, text in switches_of(verb).items():
        more += [f"| `{flag(switch)}` | switch | off | {text[0].upper()}{text[1:]}. |"]
    more += ["| `--json` | switch | off | Print the result as one JSON object on stdout. |"]
    return "\n".join(
        [
            f"# mocokit {verb}",
            "",
            "\n\n".join(texts_of(verb)),
            "",
            f"```bash\nmocokit {verb} {arguments}[options]\n```",
            "",
            f"In Python: [`mocokit.{verb}`](../api.md#mocokit.{verb}), with `{name}` for `{flag(name)}`.",
            f"In a YAML file: `{name}: {value}`; switches are `true` or `false`.",
            "",
            *_table(rows.pop("") + more),
            *(line for group, lines in rows.items() for line in (f"## {group}", "", *_table(lines))),
        ]
    )


def _table(rows: list[str]) -> list[str]:
    return ["| Option | Values | Default | Meaning |", "|---|---|---|---|", *rows, ""]


def _row(option: Option) -> str:
    if option.positional:
        name = f"`{option.name.upper()}`"
    elif option.kind is bool:
        name = f"`{flag(option.name)}`, `--no-{flag(option.name)[2:]}`"
    else:
        name = ", ".join(f"`{word}`" for word in (flag(option.name), option.short) if word)
    if option.required:
        default = "required"
    elif not option.has_default:
        default = "derived"
    else:
        default = "" if option.default in (None, ()) else f"`{str(option.default).lower()}`"
    meaning = f"{option.help[0].upper()}{option.help[1:]}.".replace("|", "\\|")
    return f"| {name} | {_values(option)} | {default} | {meaning} |"


def _values(option: Option) -> str:
    if option.choices:
        return ", ".join(f"`{choice}`" for choice in option.choices)
    kind, low, high = TYPES[option.kind], option.low, option.high
    if low is not None and high is not None:
        return f"{kind}, {low:g} to {high:g}"
    return kind if low is None else f"{kind}, at least {low:g}"


def api() -> str:
    """Every public name with its signature and documentation."""
    parts = [f"::: mocokit.{name}" for name in mocokit.__all__]
    return "\n\n".join(["# Python API", "Every name is imported from `mocokit`.", *parts, ""])
