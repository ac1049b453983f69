"""Write src/mocokit/__init__.pyi, the signatures of the public functions for editors and type checkers.

Run it after a change to an option, a signature or a docstring of the public functions: python tools/write_stub.py
"""

import inspect
import textwrap
import types
import typing
from pathlib import Path
from typing import Any

import mocokit
from mocokit.config import VERBS

STUB = Path(mocokit.__file__).with_suffix(".pyi")
HEAD = '"""Public names of mocokit. Written by tools/write_stub.py."""\n'


def annotation_text(annotation: Any, imports: set[tuple[str, str]]) -> str:
    """An annotation as source text; what it takes from other modules is added to ``imports``."""

    def text(part: Any) -> str:
        return annotation_text(part, imports)

    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if annotation is types.NoneType or annotation is None:
        return "None"
    if annotation is ...:
        return "..."
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(text, arguments))
    if origin is typing.Literal:
        imports.add(("typing", "Literal"))
        return f"Literal[{', '.join(map(_value_text, arguments))}]"
    if origin:
        return f"{text(origin)}[{', '.join(map(text, arguments))}]"
    if annotation.__module__ != "builtins":
        imports.add((annotation.__module__, annotation.__name__))
    return str(annotation.__name__)


def _value_text(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def function_text(name: str, imports: set[tuple[str, str]]) -> str:
    """A public function: signature and documentation."""
    function = getattr(mocokit, name)
    signature = inspect.signature(function)
    lines, keyword_only = [f"def {name}("], False
    for p in signature.parameters.values():
        if p.kind is p.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            lines.append("    *,")
        default = "" if p.default is p.empty else f" = {_value_text(p.default)}"
        lines.append(f"    {p.name}: {annotation_text(p.annotation, imports)}{default},")
    documentation = textwrap.indent(f'"""{inspect.getdoc(function)}\n"""', "    ")
    lines.append(f") -> {annotation_text(signature.return_annotation, imports)}:")
    whole = lines[0] + ", ".join(line.strip(" ,") for line in lines[1:-1]) + lines[-1]
    return "\n".join([*([whole] if len(whole) <= 120 else lines), documentation])  # as ruff formats it


def stub() -> str:
    """The whole stub."""
    imports = {(home, name) for name, home in mocokit.HOMES.items() if name not in VERBS}
    functions = "\n\n".join(function_text(name, imports) for name in sorted(VERBS))
    modules: dict[str, list[str]] = {}
    for module, name in sorted(imports):
        modules.setdefault(module, []).append(name)
    standard = [f"from {m} import {', '.join(names)}" for m, names in modules.items() if not m.startswith("mocokit")]
    own = [f"from {home} import {name} as {name}" for home, name in sorted(imports) if name in mocokit.HOMES]
    return "\n".join([HEAD, *standard, "", *own, "", "__version__: str", "", functions, ""])


if __name__ == "__main__":
    STUB.write_text(stub(), encoding="utf-8")
