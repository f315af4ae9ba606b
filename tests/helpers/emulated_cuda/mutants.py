"""Every place in a module that orders the work of two streams or threads, and the module without one of them.

A call is taken out and its operands are kept, so that nothing but the order is lost; a question is answered with yes.
Places are found in the source: a new one is tried without anybody listing it.
"""

import ast
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType

ORDERING = {"record", "wait_event", "synchronize", "record_stream", "settle", "idle"}


@dataclass(frozen=True)
class Mutant:
    """A module without one call: `text`, within the function `where`."""

    module: ModuleType
    where: str
    text: str
    code: CodeType

    def __str__(self) -> str:
        return f"{self.module.__name__.rpartition('.')[2]}.{self.where}: {self.text}"

    @contextmanager
    def alive(self) -> Iterator[None]:
        """The module is without the call in this block."""
        found: object = self.module
        for name in self.where.split("."):
            found = vars(found)[name]
        assert isinstance(found, FunctionType)
        before, found.__code__ = found.__code__, self.code
        try:
            yield
        finally:
            found.__code__ = before


def mutants(module: ModuleType) -> list[Mutant]:
    """One for each call that orders something, or passes an ordered wait on to `super`."""
    source = inspect.getsource(module)
    found = []
    for number in range(sum(_orders(node) for node in ast.walk(ast.parse(source)))):
        tree = ast.parse(source)
        taken = _Take(number)
        code = compile(ast.fix_missing_locations(taken.visit(tree)), inspect.getfile(module), "exec")
        function = next(one for one in _functions(code) if one.co_qualname == taken.where)
        found.append(Mutant(module, taken.where, taken.text, function))
    return found


def _orders(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Name):
        return node.func.id in ORDERING
    if not isinstance(node.func, ast.Attribute):
        return False
    of_super = ast.unparse(node.func.value) == "super()"
    return node.func.attr in ORDERING or (of_super and node.func.attr == "wait")


class _Take(ast.NodeTransformer):
    """Replaces the call of this number by a tuple of what it was called on and with."""

    def __init__(self, number: int) -> None:
        self.number, self.where, self.text = number, "", ""
        self._scope: list[str] = []

    def _within(self, node: ast.ClassDef | ast.FunctionDef) -> ast.AST:
        self._scope.append(node.name)
        self.generic_visit(node)
        self._scope.pop()
        return node

    visit_ClassDef = visit_FunctionDef = _within  # noqa: N815  # ast's names

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if _orders(node):
            self.number -= 1
            if self.number == -1:
                self.where, self.text = ".".join(self._scope), ast.unparse(node)
                operands = [node.func.value] if isinstance(node.func, ast.Attribute) else []
                return ast.Tuple([*operands, *node.args], ast.Load())
        self.generic_visit(node)
        return node


def _functions(code: CodeType) -> Iterator[CodeType]:
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield one
            yield from _functions(one)
