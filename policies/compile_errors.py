"""Why a policy cannot be compiled, in one line: the user's file and line, what is not supported there, and the mend.

numba's message nests a paragraph for every call between the kernel and the line that is wrong; the innermost place in
the policy's own files is the line, and its syntax tells what stands there.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from policies.may_use import MAY_USE

PLACE = re.compile(r'File "([^"\n]+)", line (\d+)|(?:at|from) (\S[^\n()]*?) \((\d+)\)')
UNDEFINED = re.compile(r"name '(\w+)' is not defined")
REASONS = (
    re.compile(r"Unknown attribute '(\w+)' of type ([^\s(]+)"),
    re.compile(r"No implementation of function Function\((?:<(?:built-in )?function )?([\w.]+)"),
    re.compile(r"(Use of unsupported [^\n]{1,120}?)(?: found)?[.\n]"),
)
NO_ARRAYS = "a compiled policy makes no arrays, lists or texts: write a loop over declared arrays"
NO_STORE = "what lasts belongs in declared arrays, such as tk.per_expert(np.int64)"
NO_METHOD = "helpers are functions of the module, not methods; what a policy keeps is declared in its class"
SEE = "docs/policies.md lists what may be used"
SYNTAX: tuple[tuple[type[ast.AST] | tuple[type[ast.AST], ...], str, str], ...] = (
    ((ast.Dict, ast.DictComp), "a dict", NO_STORE),
    ((ast.Set, ast.SetComp), "a set", NO_STORE),
    ((ast.List, ast.ListComp), "a list", NO_STORE),
    (ast.GeneratorExp, "a generator", "write a loop"),
    (ast.JoinedStr, "a formatted text", "policies compute with numbers only"),
    ((ast.With, ast.AsyncWith), "with", "policies compute with numbers only"),
    (ast.NamedExpr, "an assignment inside an expression", "assign on a line of its own"),
    ((ast.Global, ast.Nonlocal), "a global that is written", NO_STORE),
    ((ast.Yield, ast.YieldFrom, ast.Await), "a generator", "write a loop"),
)


def explain(error: Exception, sources: Sequence[Path]) -> str:
    """One line about numba's `error`; `sources` are the files of the policies that were compiled."""
    text = str(error)
    trees = {path.resolve(): tree for path in sources if (tree := _parsed(path)) is not None}
    place = next(_places(text, trees), None) or _undefined(text, trees)
    if place is None:
        return f"what a hook returns has to be a number ({_reason(text)}); tracekit policies check says more"
    path, line = place
    line, what, mend = _found(trees[path], line, text)
    return f"{_shown(path, sources)}, line {line}: {what} is not supported: {mend}; {SEE}"


def _places(text: str, trees: dict[Path, ast.Module]) -> Iterator[tuple[Path, int]]:
    """The places in the policy's files that the message names, the innermost call first."""
    for match in PLACE.finditer(text):
        name, line = (match[1], match[2]) if match[1] else (match[3], match[4])
        path = Path(name).resolve()
        if path in trees:
            yield path, int(line)


def _undefined(text: str, trees: dict[Path, ast.Module]) -> tuple[Path, int] | None:
    """Where a name stands that nothing defines: numba does not say."""
    if (found := UNDEFINED.search(text)) is None:
        return None
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id == found[1]:
                return path, node.lineno
    return None


def _found(tree: ast.Module, line: int, text: str) -> tuple[int, str, str]:
    """The line that cannot be compiled, what stands there, and what to do instead. What numba stumbles over may have
    been made on an earlier line of the same function."""
    if (name := UNDEFINED.search(text)) is not None:
        return line, f"{name[1]}, which the file does not define,", "define or import it in the policy's file"
    nodes = [node for node in ast.walk(tree) if getattr(node, "lineno", None) == line]
    wrong = _unknown_call(nodes, text) or ("", "")
    for part in (nodes, [] if wrong[0] else _function_around(tree, line)):
        for kinds, what, mend in SYNTAX:
            for node in part:
                if isinstance(node, kinds):
                    return getattr(node, "lineno", line), what, mend
    if not wrong[0] and any(isinstance(node, ast.BinOp) for node in nodes):
        wrong = ("arithmetic on whole arrays, or on what is no number,", NO_ARRAYS)
    return line, *(wrong if wrong[0] else (_reason(text), NO_ARRAYS))


def _function_around(tree: ast.Module, line: int) -> list[ast.AST]:
    """Everything in the innermost function that holds the line, up to it."""
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.lineno <= line <= (node.end_lineno or line)
    ]
    if not around:
        return []
    inner = max(around, key=lambda node: node.lineno)
    return [node for node in ast.walk(inner) if getattr(node, "lineno", line + 1) <= line]


def _unknown_call(nodes: Sequence[ast.AST], text: str) -> tuple[str, str] | None:
    """A function or an attribute on the line that compiled code does not know."""
    for node in nodes:
        if isinstance(node, ast.Call) and (called := _called(node)) not in _allowed():
            owner, _, method = called.rpartition(".")
            if owner == "self":
                return f"{called}, a method,", NO_METHOD
            if owner or _missing(text, method):
                return called, NO_ARRAYS
    for node in nodes:
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self" and _missing(text, node.attr):
            return f"self.{node.attr}, which the class does not declare,", NO_METHOD
    return None


def _called(call: ast.Call) -> str:
    """A call's function as it is written: `np.sort`, `self.last.copy`, `sorted`."""
    return ast.unparse(call.func)


def _allowed() -> set[str]:
    """Functions that may be called, as the list writes them."""
    calls = (ast.parse(line, mode="eval").body for lines in MAY_USE.values() for line in lines)
    return {_called(call) for call in calls if isinstance(call, ast.Call)} | {"range", "enumerate", "zip"}


def _missing(text: str, name: str) -> bool:
    """Whether numba's message says that it does not know this name."""
    return any(match[1].rpartition(".")[2] == name for reason in REASONS[:2] for match in reason.finditer(text))


def _reason(text: str) -> str:
    """numba's own words, the innermost."""
    for reason in REASONS:
        if found := reason.findall(text):
            last = found[-1]
            return last if isinstance(last, str) else " of ".join(last)
    lines = [line.strip() for line in text.splitlines() if "rror:" in line]
    return (lines or [text.strip().partition("\n")[0]])[-1][:200]


def _shown(path: Path, sources: Sequence[Path]) -> str:
    """The file, as seen from here where it lies below."""
    named = next(source for source in sources if source.resolve() == path)
    return str(named.relative_to(Path.cwd()) if named.is_relative_to(Path.cwd()) else named)


def _parsed(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
