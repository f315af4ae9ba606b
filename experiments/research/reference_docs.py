"""The reference pages of the documentation, from the code itself: commands, plan, hardware profile, study.

python -m experiments.research.reference_docs docs/reference
"""

import ast
import importlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path

import msgspec
import typer
from typer.core import TyperArgument, TyperGroup, TyperOption

from engine.hardware.economy import Power, Price
from engine.hardware.engine_profile import EngineProfile, Expansion, ExpertKernel, OnMachines, Overhead
from engine.hardware.host import Host, Lanes
from engine.hardware.profile import Cpu, Device, Disk, HardwareProfile, Link, Rate
from engine.plan.misses import AdmissionPlan, MissPlan
from engine.plan.tables import (
    CachePlan,
    ComputePlan,
    EvictionPlan,
    PlacementPlan,
    PrecisionPlan,
    PrefetchPlan,
    RoutingPlan,
    WeightsPlan,
)
from experiments.cli.main import COMMANDS, build
from experiments.study.study_file import Search, Statistics

Tables = Mapping[str, type[msgspec.Struct]]
MADE = "<!-- Made by: python -m experiments.research.reference_docs docs/reference -->\n\n"
PLAN: Tables = {
    "cache": CachePlan,
    "placement": PlacementPlan,
    "eviction": EvictionPlan,
    "prefetch": PrefetchPlan,
    "routing": RoutingPlan,
    "miss": MissPlan,
    "admission": AdmissionPlan,
    "weights": WeightsPlan,
    "precision": PrecisionPlan,
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
ENGINE: Tables = {
    "": EngineProfile,
    "overhead": Overhead,
    "on": OnMachines,
    "expansions": Expansion,
    "fused": ExpertKernel,
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
        parts += [_option(parameter) for parameter in parameters(name)]
    return "".join(parts)


def parameters(name: str) -> list[TyperArgument | TyperOption]:
    """The arguments and options of one command, as the command line knows them."""
    group = typer.main.get_command(build(name))
    assert isinstance(group, TyperGroup)
    found = [one for one in group.commands[name].params if isinstance(one, TyperArgument | TyperOption)]
    return [one for one in found if one.name != "help"]


def _told(function: Callable[..., object]) -> tuple[str, str]:
    """A command's description, and its example."""
    text = inspect.getdoc(function) or ""
    words, _, example = text.partition("Example: ")
    return words.strip(), example.strip()


def _option(parameter: TyperArgument | TyperOption) -> str:
    """A line of the table, with the names that are really typed."""
    if isinstance(parameter, TyperArgument):
        shown = f"`{parameter.metavar or (parameter.name or '').upper()}`"
    else:
        names = [*parameter.opts, *parameter.secondary_opts]
        shown = ", ".join(f"`{name}`" for name in names if name.startswith("--"))
    default = "required" if parameter.required else parameter.default
    if default is None or default is False or default == ():
        default = ""
    elif isinstance(default, Enum):
        default = default.value
    return f"| {shown} | {_cell(str(default))} | {_cell(parameter.help or '')} |\n"


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
            "one. The table `engine` is as an [engine profile](engine.md).",
            PROFILE,
        ),
        "engine.md": tables(
            "Engine profile",
            "What software takes of a machine's time, as a TOML file, or the table `engine` of a hardware profile; "
            "`tracekit hardware engines` names the shipped ones.",
            ENGINE,
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
