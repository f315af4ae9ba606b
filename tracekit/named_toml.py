"""Named TOML tables: reads a shipped file by its name, or a user's by its path, into a validated struct."""

import os
import re
import tomllib
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from tracekit.errors import TracekitError, did_you_mean
from tracekit.opening import read_file

T = TypeVar("T", bound=msgspec.Struct)
_MAX_BYTES = 1 << 16  # many times any table
_MAX_DOTS = 1000  # in a line: tomllib takes quadratic time on a dotted key
_WRONG_VALUE = re.compile(r"Invalid enum value '(.*)' - at `\$\.([\w.]+)`")
_UNKNOWN = re.compile(r"unknown field `([^`]*)`")


def names(package: str, folder: str) -> tuple[str, ...]:
    """The names shipped in `folder` of `package`, sorted."""
    return tuple(sorted(path.stem for path in _home(package, folder).glob("*.toml")))


def load(
    name_or_path: str | os.PathLike[str],
    kind: type[T],
    *,
    what: str,
    package: str,
    folder: str,
    error: type[TracekitError],
) -> T:
    """The table `name_or_path` names: a path when it ends in .toml or holds a slash, else a shipped name.

    `what` names the kind of table in messages. Raises `error`, one line, for anything that cannot be read.
    """
    label, tables = load_tables(name_or_path, what=what, package=package, folder=folder, error=error)
    return convert(tables, kind, label=label, error=error)


def load_tables(
    name_or_path: str | os.PathLike[str], *, what: str, package: str, folder: str, error: type[TracekitError]
) -> tuple[str, dict[str, Any]]:
    """What `load` reads, not yet validated, after the label that opens every message about it."""
    text = os.fspath(name_or_path)
    if not isinstance(text, str):
        raise error(f"{what} {text!r}: give a name or a path as text")
    if isinstance(name_or_path, os.PathLike) or text.endswith(".toml") or "/" in text or os.sep in text:
        return f"{what} {text}", read_toml(text, what, error)
    known = names(package, folder)
    if text not in known:
        guess = did_you_mean(text[:64], known)
        raise error(f"unknown {what} {text[:64]!r}{guess}; shipped: {', '.join(known)}; or give the path of a .toml")
    data = (_home(package, folder) / f"{text}.toml").read_bytes()
    return f"{what} {text}", decode(data, label=f"{what} {text}", error=error)


def read_toml(path: str | os.PathLike[str], what: str, error: type[TracekitError]) -> dict[str, Any]:
    """The tables of the TOML file at `path`, not yet validated."""
    return decode(_read(Path(path), what, error), label=f"{what} {os.fspath(path)}", error=error)


def decode(data: bytes, *, label: str, error: type[TracekitError]) -> dict[str, Any]:
    """TOML bytes as plain tables."""
    if any(line.count(b".") > _MAX_DOTS for line in data.split(b"\n")):
        raise error(f"{label}: a line holds more than {_MAX_DOTS} dots; tables or arrays are nested too deeply")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError:
        raise error(f"{label}: not a text file in UTF-8; a TOML file is expected") from None
    except RecursionError:
        raise error(f"{label}: not usable TOML: tables or arrays are nested too deeply") from None
    except ValueError as problem:  # TOMLDecodeError, and integers with too many digits
        raise error(f"{label}: not valid TOML: {problem}") from None


def convert(table: dict[str, Any], kind: type[T], *, label: str, error: type[TracekitError]) -> T:
    """Plain tables as a struct of `kind`."""
    try:
        return msgspec.convert(_whole(table), kind)
    except RecursionError:
        raise error(f"{label}: not usable: tables or arrays are nested too deeply") from None
    except msgspec.ValidationError as problem:
        unknown = _UNKNOWN.search(str(problem))
        guess = did_you_mean(unknown[1], _keys(kind)) if unknown else _values(str(problem), kind)
        raise error(f"{label}: {problem}{guess}") from None


def _home(package: str, folder: str) -> Path:
    # Not importlib.resources: importing that takes longer than everything else here.
    return Path(import_module(package).__path__[0]) / folder


def _whole(value: object) -> object:
    """The table with whole floats as integers, so that a rate may be written 320e9; fractions stay."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _read(path: Path, what: str, error: type[TracekitError]) -> bytes:
    try:
        return read_file(path, _MAX_BYTES)
    except FileNotFoundError:
        raise error(f"{what} {path}: no such file") from None
    except OSError as problem:
        raise error(f"{what} {path}: cannot be read: {problem.strerror or problem}") from None


def _values(problem: str, kind: type[msgspec.Struct]) -> str:
    """The tail of a message about a text that is none of a key's values: which there are, and which was meant."""
    found = _WRONG_VALUE.search(problem)
    if found is None:
        return ""
    given, path = found.groups()
    at: object = kind
    for key in path.split("."):
        structs = [part for part in _parts(at) if isinstance(part, type) and issubclass(part, msgspec.Struct)]
        fields = {field.encode_name: field.type for struct in structs for field in msgspec.structs.fields(struct)}
        at = fields.get(key)
    values = [str(value) for part in _parts(at) if get_origin(part) is Literal for value in get_args(part)]
    listed = f"; it is one of {', '.join(values)}" if values else ""
    return listed + did_you_mean(given, values)


def _parts(kind: object) -> tuple[object, ...]:
    """The types that a type is made of, where it is one of several."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _keys(kind: type[msgspec.Struct]) -> list[str]:
    """Every key of a struct and of the structs directly in it, for suggestions."""
    found: list[str] = []
    for field in msgspec.structs.fields(kind):
        found.append(field.encode_name)
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            found.extend(_keys(field.type))
    return found
