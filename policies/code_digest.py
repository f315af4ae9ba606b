"""A digest of code as it was loaded: what the compiler is given, whatever has become of the source files since."""

import hashlib
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType

import llvmlite
import numba


def code_digest(modules: list[ModuleType], text: str) -> str:
    """A digest of `text`, of the modules' code and constants, and of the compiler's versions."""
    digest = hashlib.sha256(f"{sys.version} {numba.__version__} {llvmlite.__version__} {text}".encode())
    for module in modules:
        digest.update(f"{module.__name__}\0{constants(module)}\0".encode())
        for name, function in functions(module):
            told = (name, shape(function.__code__), repr(function.__defaults__), repr(function.__kwdefaults__))
            digest.update(f"{told}\0".encode())
    return digest.hexdigest()


def constants(module: ModuleType) -> str:
    """The numbers and texts that code in `module` may name, wherever they came from: they are compiled in."""
    plain = (bool, int, float, str, tuple)
    named = vars(module).items()
    return repr(sorted((name, repr(v)) for name, v in named if isinstance(v, plain) and not name.startswith("__")))


def functions(module: ModuleType) -> Iterator[tuple[str, FunctionType]]:
    """Every function that `module` defines, methods included, and what a dispatcher of numba or a method wraps."""
    open_ends: list[tuple[str, object]] = [(name, value) for name, value in sorted(vars(module).items(), reverse=True)]
    seen: set[int] = set()
    while open_ends:
        name, value = open_ends.pop()
        function = getattr(value, "py_func", getattr(value, "__func__", value))
        if getattr(function, "__module__", None) != module.__name__:
            continue
        if isinstance(function, FunctionType):
            yield name, function
        elif isinstance(value, type) and id(value) not in seen:
            seen.add(id(value))
            open_ends += [(f"{name}.{one}", part) for one, part in sorted(vars(value).items(), reverse=True)]


def shape(code: CodeType) -> tuple[object, ...]:
    """What a code object does: its instructions, names and constants; not where it stands in a file."""
    return (
        *(code.co_code, code.co_exceptiontable, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars),
        *(code.co_flags, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount),
        tuple(map(told, code.co_consts)),
    )


def told(constant: object) -> object:
    """A constant, the same in every process: sets of texts are iterated in any order."""
    if isinstance(constant, CodeType):
        return shape(constant)
    if isinstance(constant, frozenset):
        return sorted(map(repr, constant))
    return repr(constant)
