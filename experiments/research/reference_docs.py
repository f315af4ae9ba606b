"""The reference pages of the documentation, from the code itself: commands, plan, hardware profile, study.

python -m experiments.research.reference_docs docs/reference
"""

import ast
import importlib
import inspect
import sys
import textwrap
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path

import msgspec
import typer

from engine.hardware.economy import Power, Price
from engine.hardware.host import Host, Lanes
from engine.hardware.profile import Cpu, Device, Disk, HardwareProfile, Link, Rate
from engine.plan.plan import CachePlan, ComputePlan, EvictionPlan, PrefetchPlan, WeightsPlan
from experiments.cli.main import COMMANDS
from experiments.study.grid import Search, Statistics

Tables = Mapping[str, type[msgspec.Struct]]
MADE = "<!-- Made by: python -m experiments.research.reference_docs docs/reference -->\n\n"
PLAN: Tables = {
    "cache": CachePlan,
    "eviction": EvictionPlan,
    "prefetch": PrefetchPlan,
    "weights": WeightsPlan,
    "compute": ComputePlan,
}
PROFILE: Tables = {
    "": HardwareProfile,
    "device": Device,
    "link": Link,
    "link.rates": Rate,
    "disk": Disk,
    "disk.lanes": Lanes,
    "host": Host,
    "cpu": Cpu,
    "power": Power,
    "price": Price,
}
STUDY: Tables = {"statistics": Statistics, "search": Search}


def commands() -> str:
    """Every command with its arguments and options."""
    parts = [
        MADE + "# Commands\n\nEvery command ends with exit code 2 and one line on stderr where its input is wrong.\n"
    ]
    for name, (module, _) in COMMANDS.items():
        function = importlib.import_module(f"experiments.cli.{module}").command
        words, example = _told(function)
        parts.append(f"\n## tracekit {name}\n\n{words}\n")
        if example:
            parts.append(f"\n```text\n{example}\n```\n")
        parts.append("\n| argument or option | default | what |\n|---|---|---|\n")
        hints = typing.get_type_hints(function, include_extras=True)
        for parameter in inspect.signature(function).parameters.values():
            if typing.get_args(hints[parameter.name]):  # what Typer itself hands over has no help
                parts.append(_option(parameter, hints[parameter.name]))
    return "".join(parts)


def _told(function: Callable[..., object]) -> tuple[str, str]:
    """A command's description, and its example."""
    text = inspect.getdoc(function) or ""
    words, _, example = text.partition("Example: ")
    return words.strip(), example.strip()


def _option(parameter: inspect.Parameter, hint: object) -> str:
    _, info = typing.get_args(hint)[:2]
    name = parameter.name.replace("_", "-")
    if isinstance(info, typer.models.ArgumentInfo):
        shown = f"`{name.upper()}`"
    else:
        declared = [text for text in info.param_decls or () if text.startswith("--")]
        shown = ", ".join(f"`{text}`" for text in declared or [f"--{name}"])
    default = parameter.default
    if default is inspect.Parameter.empty:
        default = "required"
    elif default is None or default is False or default == ():
        default = ""
    elif isinstance(default, Enum):
        default = default.value
    return f"| {shown} | {_cell(str(default))} | {_cell(info.help or '')} |\n"


def tables(title: str, about: str, structs: Tables) -> str:
    """The keys of a file's tables."""
    parts = [f"{MADE}# {title}\n\n{about}\n"]
    for name, struct in structs.items():
        parts.append(f"\n## `{name}`\n" if name else "\n## At the top\n")
        parts.append(f"\n{' '.join((inspect.getdoc(struct) or '').split())}\n")
        parts.append("\n| key | type | default | what |\n|---|---|---|---|\n")
        words = _comments(struct)
        for field in msgspec.structs.fields(struct):
            if field.name != "parameters":
                default = "" if field.required else msgspec.json.encode(_default(field)).decode()
                cells = (f"`{field.name}`", _type(field.type), "required" if field.required else f"`{default}`")
                parts.append(f"| {' | '.join(cells)} | {_cell(words.get(field.name, ''))} |\n")
    return "".join(parts)


def _default(field: msgspec.structs.FieldInfo) -> object:
    return field.default_factory() if field.default is msgspec.NODEFAULT else field.default


def _type(kind: object) -> str:
    """A type for people."""
    found = msgspec.inspect.type_info(kind)
    if isinstance(found, msgspec.inspect.UnionType):
        return " or ".join(_named(part) for part in found.types if not isinstance(part, msgspec.inspect.NoneType))
    return _named(found)


def _named(found: msgspec.inspect.Type) -> str:
    info = msgspec.inspect
    if isinstance(found, info.LiteralType):
        return " or ".join(f'`"{value}"`' for value in found.values)
    if isinstance(found, info.StructType):
        return "table"
    if isinstance(found, info.ListType):
        return f"list of {_named(found.item_type)}"
    names = {
        info.IntType: "whole number",
        info.FloatType: "number",
        info.BoolType: "true or false",
        info.StrType: "text",
    }
    shown = next(name for kind, name in names.items() if isinstance(found, kind))
    low, high = (getattr(found, bound, None) for bound in ("ge", "le"))
    return shown + ("" if low is None or high is None else f", {low} to {high}")


def _comments(struct: type[msgspec.Struct]) -> dict[str, str]:
    """What stands beside each field in the source: a text below it, or a comment above it."""
    source = textwrap.dedent(inspect.getsource(struct))
    lines = source.splitlines()
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    found = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[node.target.id] = " ".join(str(after.value.value).split())
            continue
        above: list[str] = []
        for line in reversed(lines[: node.lineno - 1]):
            if not line.strip().startswith("#"):
                break
            above.insert(0, line.strip().lstrip("# "))
        found[node.target.id] = " ".join(above)
    return found


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def pages() -> dict[str, str]:
    """Every page by the name of its file."""
    return {
        "commands.md": commands(),
        "plan.md": tables(
            "Plan",
            "A plan is a TOML file. Every table but `cache` may be left out; unknown keys are errors. Beside the keys "
            "of `eviction` and `prefetch` stand the policy's own parameters ([list](../policies.md)).",
            PLAN,
        ),
        "hardware.md": tables(
            "Hardware profile",
            "A profile is a TOML file; `tracekit hardware list` names the shipped ones, `tracekit calibrate` measures "
            "one.",
            PROFILE,
        ),
        "study.md": tables(
            "Study: statistics and search",
            "The other keys of a study's file, and the columns of its results, are in [Studies](../studies.md).",
            STUDY,
        ),
    }


def main(arguments: list[str]) -> int:
    """Write the pages."""
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
