"""Compiled routing policies: machine code of `rewrite_visit` for one policy, kept on disk as that of `decide` is."""

import sys
from collections.abc import Callable
from types import ModuleType

from policies import compiled
from policies import rewrite as rewrite_module
from policies.code_digest import code_digest
from policies.compiled import load_compiled, make_callable, make_hook, own_modules, reachable
from policies.registry import hooks
from policies.routing.base import RoutingPolicy

Rewrite = Callable[..., int]
"""`rewrite_visit`, on the policy's state in place of the policy"""

SHIM = '''"""Compiled rewriting by {policy}."""

from numba import njit

from policies.rewrite import rewrite_visit


@njit(cache=True, nogil=True, error_model="numpy")
def run(policy, layer, score, looks, ids, weights, logits, scores, present):
    return rewrite_visit(policy, layer, score, looks, ids, weights, logits, scores, present)
'''
MAKING = sys.modules[__name__]

for _name, _original in hooks(RoutingPolicy).items():
    make_hook(_name, _original)


def rewriting_modules(policy: type[RoutingPolicy]) -> list[ModuleType]:
    """Every module whose code goes into the compiled code: the kernel's, the policy's, its helpers', by name."""
    return reachable([rewrite_module, *own_modules((policy,))], (policy,))


def compiled_rewrite(policy: type[RoutingPolicy]) -> Rewrite:
    """The compiled kernel for this policy; compiled at its first call, then loaded from disk."""
    modules = rewriting_modules(policy)
    text = SHIM.format(policy=policy.__qualname__)
    digest = code_digest([*modules, MAKING], f"{policy.__module__}:{policy.__qualname__} {text}")
    name = f"tracekit_compiled_{digest[:32]}"
    with compiled.LOADING:
        if name not in sys.modules:
            for module in modules:
                if module is not MAKING:
                    make_callable(module)
            load_compiled(name, digest, text, {"State": policy.State})
        run: Rewrite = sys.modules[name].run
        return run
