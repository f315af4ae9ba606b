"""Compiled policies: the machine code of `decide` for one eviction policy and one prefetcher, kept on disk.

numba compiles `decide` for the types of its arguments; a policy's hooks are found through the type of its state. The
compiled code is stored under a digest of all code that went into it, so an edited policy file never meets what was
compiled from the old one.
"""

import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
from numba.core import types
from numba.extending import overload, overload_method, register_jitable

from policies import arguments
from policies import decide as decide_module
from policies.admission.always import AlwaysAdmit
from policies.admission.base import Admission
from policies.arguments import unpacking
from policies.cache_state import as_key
from policies.code_digest import code_digest
from policies.compile_cache import cache_directory
from policies.eviction.base import EvictionPolicy
from policies.fields import Policy
from policies.prefetch.base import Prefetcher
from policies.prefetch.none import NoPrefetch
from policies.registry import hooks

Decide = Callable[[np.ndarray, np.ndarray], int]
"""`decide` on the `table` and the `numbers` of `Arguments`"""

# The kernel allocates nothing, so it needs no reference counting: without it the same code runs about 15 times faster.
SHIM = '''"""Compiled decisions of {eviction} with {prefetcher}."""

from numba import njit
from numpy import bool_, float32, float64, int8, int16, int32, int64, uint8, uint16, uint32, uint64  # noqa: F401

from policies.arguments import array_at
from policies.cache_state import Batch, CacheState
from policies.decide import decide
from policies.events import EventBuffer
from policies.misses import Misses


@njit(nogil=True, _nrt=False, no_cfunc_wrapper=True, no_cpython_wrapper=True, error_model="numpy")
def kernel(cache, eviction, prefetcher, misses, admission, batch, events):
    return decide(cache, eviction, prefetcher, misses, admission, batch, events)


@njit(cache=True, nogil=True, _nrt=False, no_cfunc_wrapper=True, error_model="numpy")
def run(table, numbers):
{unpacking}
    return kernel(cache, eviction, prefetcher, misses, admission, batch, events)
'''


MAKING = (arguments, sys.modules[__name__])
"""What makes compiled code, and is called by none."""

LOADING = threading.Lock()
"""Held while a module of compiled code is made: threads may ask for the same one at once."""

# A call would pass every array of the state through memory. numba's own inlining (inline="always") is not an option:
# with it numba 0.68 compiles wrong code for `decide`.
# Nothing but compiled code calls a hook or a helper, so the wrappers for other callers are left out.
INLINE = {"forceinline": True, "no_cfunc_wrapper": True, "no_cpython_wrapper": True}

CALLABLE: set[Callable[..., object]] = {as_key}
"""The plain functions that numba knows."""


@overload(as_key, jit_options=INLINE)  # type: ignore[arg-type]
def _as_key(number: int) -> Callable[[int], np.uint32]:
    def unsigned(number: int) -> np.uint32:
        return np.uint32(number)

    return unsigned


def plain(function: FunctionType) -> FunctionType:
    """The same function without annotations: numba compares signatures literally."""
    return FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )


def make_hook(name: str, original: FunctionType) -> None:
    """Let compiled code call `state.name(...)`: the method of the policy whose state it is, if it is a policy's."""

    @overload_method(types.BaseNamedTuple, name, jit_options=INLINE)  # type: ignore[call-arg]
    @wraps(plain(original))
    def behind(state: types.NamedTuple | types.NamedUniTuple, *arguments: types.Type) -> FunctionType | None:
        method = getattr(getattr(state.instance_class, "policy", None), name, None)
        return plain(method) if isinstance(method, FunctionType) else None


# A hook that two kinds of policies have is one: the state says whose.
for _name, _original in {**hooks(Admission), **hooks(Prefetcher), **hooks(EvictionPolicy)}.items():
    make_hook(_name, _original)


def source_modules(policies: tuple[type[Policy], ...]) -> list[ModuleType]:
    """Every module whose code goes into the compiled code: the kernel's, the policies', their helpers', by name."""
    return reachable([decide_module, *MAKING, *own_modules(policies)], policies)


def own_modules(policies: tuple[type[Policy], ...]) -> list[ModuleType]:
    """The modules that define the policies and their bases."""
    return [sys.modules[base.__module__] for policy in policies for base in policy.__mro__[:-1]]


def reachable(open_ends: list[ModuleType], policies: tuple[type[Policy], ...]) -> list[ModuleType]:
    """`open_ends` and every module that code in them may name, sorted by name; without Python's and libraries' own."""
    found: dict[str, ModuleType] = {}
    # A policy may be installed as a package of its own: all of that package is the policy's.
    roots = {module.__name__.partition(".")[0] for module in own_modules(policies)}
    while open_ends:
        module = open_ends.pop()
        if module.__name__ in found or is_foreign(module, roots):
            continue
        found[module.__name__] = module
        if module not in MAKING:
            open_ends += used_modules(module)
    return [found[name] for name in sorted(found)]


def is_foreign(module: ModuleType, roots: set[str]) -> bool:
    """Whether a module belongs to Python or to an installed library, and not to the packages `roots`."""
    root = module.__name__.partition(".")[0]
    installed = "site-packages" in (getattr(module, "__file__", None) or "site-packages")
    return root in sys.stdlib_module_names or (installed and root not in roots)


def mentions(policy: type[Policy], attribute: str) -> bool:
    """Whether a method of the policy, or a function it may call, names `attribute`: what none names need not be kept.

    A method of a base class that the policy overrides does not count.
    """
    methods = [getattr(policy, name) for base in policy.__mro__[:-1] for name in vars(base)]
    modules = reachable(own_modules((policy,)), (policy,))
    named = methods + [value for module in modules for value in vars(module).values()]
    functions = [getattr(value, "py_func", value) for value in named]
    return any(attribute in f.__code__.co_names for f in functions if isinstance(f, FunctionType))


def used_modules(module: ModuleType) -> list[ModuleType]:
    """The modules behind what code in `module` may name: imported modules, functions and numba's dispatchers."""
    found = []
    for value in vars(module).values():
        function = getattr(value, "py_func", value)
        if isinstance(value, ModuleType):
            found.append(value)
        elif isinstance(function, FunctionType) and function.__module__ in sys.modules:
            found.append(sys.modules[function.__module__])
    return found


def make_callable(module: ModuleType) -> None:
    """Let compiled code call the plain functions that code in `module` may name."""
    for value in vars(module).values():
        if isinstance(value, FunctionType) and value not in CALLABLE:
            register_jitable(error_model="numpy", **INLINE)(value)
            CALLABLE.add(value)


def compiled_decide(
    eviction: type[Policy],
    prefetcher: type[Policy],
    admission: type[Policy] = AlwaysAdmit,
    *,
    misses: bool = False,
) -> Decide:
    """The compiled kernel for these policies; compiled on first use, then loaded from disk.

    `misses`: whether a miss may be anything but copied and kept (policies.misses).

    What cannot be compiled raises numba's errors at the first call; `policies.compile_errors` turns them into a line.
    """
    asked = None if admission is AlwaysAdmit else admission
    policies = (eviction, prefetcher, *(() if asked is None else (asked,)))
    modules = source_modules(policies)
    text = SHIM.format(
        eviction=eviction.__qualname__,
        prefetcher=prefetcher.__qualname__,
        unpacking=unpacking(eviction, None if prefetcher is NoPrefetch else prefetcher, misses, asked),
    )
    # By class, too: numba tells named tuples of equal field types apart by name only when it compiles.
    classes = " ".join(f"{policy.__module__}:{policy.__qualname__}" for policy in policies)
    digest = code_digest(modules, classes + text)
    name = f"tracekit_compiled_{digest[:32]}"
    with LOADING:
        if name not in sys.modules:
            for module in modules:
                if module not in MAKING:
                    make_callable(module)
            states = {"Eviction": eviction.State, "Prefetcher": prefetcher.State, "Admitting": admission.State}
            load_compiled(name, digest, text, states)
        run: Decide = sys.modules[name].run
        return run


def load_compiled(name: str, digest: str, text: str, states: dict[str, type]) -> None:
    """Make the module `name` of this text, whose `run` is compiled at its first call."""
    kept = cache_directory()
    if kept is None:
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(states)
        exec(compile(text.replace("cache=True, ", ""), f"<{name}>", "exec"), sys.modules[name].__dict__)
        return
    directory = kept / digest[:32]
    source = directory / f"{name}.py"
    if not source.exists():
        directory.mkdir(parents=True, exist_ok=True)
        temporary = source.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(text)
        temporary.replace(source)
    spec = importlib.util.spec_from_file_location(name, source)
    assert spec is not None and spec.loader is not None
    shim = importlib.util.module_from_spec(spec)
    vars(shim).update(states)
    sys.modules[name] = shim
    spec.loader.exec_module(shim)


def source_files(policies: tuple[type[Policy], ...]) -> list[Path]:
    """The files that define the policies and what these name; the package's own only if there are no others."""
    modules = reachable(own_modules(policies), policies)
    files = {module.__name__: Path(module.__file__) for module in modules if module.__file__ is not None}
    home = __name__.partition(".")[0]
    own = [file for name, file in files.items() if name.partition(".")[0] not in (home, "tracekit")]
    return own or list(files.values())
