"""Mutations of Python source text: one small, typical mistake each, every other byte of the file kept."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from agent_gym.envs.code_agent.budget import Outcome, line_budget_run
from agent_gym.sandbox import same
from agent_gym.text import syntax_tree

__all__ = ["OPERATORS", "Mutant", "Outcome", "line_budget_run", "mutants", "same"]

OPERATORS: tuple[str, ...] = (
    "arithmetic-operator",
    "augmented-assignment",
    "boolean-operator",
    "comparison-boundary",
    "comparison-flip",
    "dropped-branch",
    "dropped-condition",
    "dropped-else",
    "dropped-statement",
    "loop-control",
    "missing-not",
    "missing-return",
    "negate-condition",
    "off-by-one",
    "swapped-arguments",
    "swapped-slice",
    "wrong-constant",
    "wrong-exception",
    "wrong-method",
    "wrong-variable",
)

_TOKENS: dict[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
    ast.LShift: "<<", ast.RShift: ">>", ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^",
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
    ast.In: "in", ast.NotIn: "not in", ast.Is: "is", ast.IsNot: "is not", ast.And: "and", ast.Or: "or",
}  # fmt: skip
_BOUNDARY = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
_FLIP = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "!=", "!=": "==", "in": "not in", "is": "is not"}
_NEGATED = {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}
# No operator here makes values grow much faster than the original: mutants run in the process of the caller.
_ARITHMETIC = {
    "+": ("-",), "-": ("+",), "*": ("+",), "/": ("//",), "//": ("%", "/"), "%": ("//",), "**": ("*",),
    "<<": (">>",), ">>": ("<<",), "&": ("|",), "|": ("&",), "^": ("|",),
}  # fmt: skip
_AUGMENTED = {
    "+": ("-=", "="), "-": ("+=", "="), "*": ("+=",), "//": ("-=", "%="), "/": ("-=",), "%": ("//=",), "**": ("*=",),
    "<<": (">>=",), ">>": ("<<=",), "&": ("|=",), "|": ("&=", "="), "^": ("|=",),
}  # fmt: skip
_EXCEPTIONS = {
    "ValueError": "KeyError", "KeyError": "ValueError", "IndexError": "KeyError", "ZeroDivisionError": "ValueError",
    "LookupError": "ValueError", "RuntimeError": "ValueError", "TypeError": "ValueError",
}  # fmt: skip
_METHODS = {
    "append": "extend", "extend": "append", "min": "max", "max": "min", "any": "all", "all": "any",
    "startswith": "endswith", "endswith": "startswith", "lower": "upper", "upper": "lower", "ljust": "rjust",
    "rjust": "ljust", "lstrip": "rstrip", "rstrip": "lstrip", "strip": "lstrip", "find": "rfind", "rfind": "find",
    "partition": "rpartition", "rpartition": "partition", "isdigit": "isalnum", "isalpha": "isupper",
    "isalnum": "isalpha", "isupper": "islower", "removeprefix": "removesuffix", "values": "keys", "sorted": "list",
    "set": "list", "abs": "int", "sum": "max", "setdefault": "get", "capitalize": "lower", "reversed": "list",
    "add": "discard", "update": "intersection_update", "heappop": "heapify",
}  # fmt: skip
_SIGNS = {
    ",": ";", ";": ",", ".": ",", "-": "_", "_": "-", ":": ";", "(": "[", ")": "]", "[": "(", "]": ")", "{": "(",
    "}": ")", "=": ":", "+": "-", "*": "+", "/": "-", "#": "*", "&": "|", "|": "&", '"': "`", "%": "$", "!": "?",
}  # fmt: skip
_MAX_VARIABLES = 1


@dataclass(frozen=True)
class Mutant:
    """A file with one mistake.

    Attributes:
        operator: The kind of mistake, one of `OPERATORS`.
        function: The top-level function that it is in.
        line: Where `before` starts in the original file, from 1.
        before: The text of the original file that changes.
        after: What stands there instead; empty where lines are left out.
        source: The whole mutated file.
    """

    operator: str
    function: str
    line: int
    before: str
    after: str
    source: str


@dataclass(frozen=True)
class _Edit:
    """Bytes start:end are replaced; `shown` is a wider span, on one line, that makes sense on its own."""

    operator: str
    start: int
    end: int
    new: str
    shown: tuple[int, int] | None = None


class _Function:
    """Finds the edits in one top-level function."""

    def __init__(self, data: bytes, starts: list[int], node: ast.FunctionDef) -> None:
        self.data = data
        self.starts = starts
        self.node = node
        # Where each local name outside of comprehensions and lambdas is first bound, and its annotation if any.
        self.bound: dict[str, int] = {}
        self.notes: dict[str, str] = {}
        self.sets: set[str] = set()
        arguments = node.args
        for arg in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
            self.bound[arg.arg] = node.lineno - 1
            if arg.annotation:
                self.notes[arg.arg] = ast.unparse(arg.annotation)
        self._collect(node.body)

    def _collect(self, nodes: list[ast.stmt]) -> None:
        todo: list[ast.AST] = list(nodes)
        while todo:
            node = todo.pop()
            if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
                continue
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                self.notes.setdefault(node.target.id, ast.unparse(node.annotation))
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and self.is_set(node.value.func if isinstance(node.value, ast.Call) else node.value)
            ):
                self.sets.add(node.targets[0].id)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self.bound[node.id] = min(node.lineno, self.bound.get(node.id, node.lineno))
            todo.extend(ast.iter_child_nodes(node))

    # Positions and text ----------------------------------------------------------------------------------------------

    def start(self, node: ast.AST) -> int:
        return self.starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]

    def end(self, node: ast.AST) -> int:
        return self.starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def text(self, node: ast.AST) -> str:
        return self.data[self.start(node) : self.end(node)].decode()

    def replace(self, operator: str, node: ast.AST, new: str, shown: ast.AST | None = None) -> _Edit:
        """The edit that puts `new` in the place of a node."""
        span = (self.start(shown), self.end(shown)) if shown is not None else None
        return _Edit(operator, self.start(node), self.end(node), new, span)

    def between(
        self, operator: str, left: ast.AST, right: ast.AST, token: str, new: str, shown: ast.AST
    ) -> Iterator[_Edit]:
        """The edit that replaces an operator's token, which stands between two nodes."""
        gap = self.data[self.end(left) : self.start(right)].decode()
        found = re.search(r"\s+".join(re.escape(part) for part in token.split()), gap)
        if found:
            start = self.end(left) + len(gap[: found.start()].encode())
            span = (self.start(shown), self.end(shown))
            yield _Edit(operator, start, start + len(found.group().encode()), new, span)

    # Walking ---------------------------------------------------------------------------------------------------------

    def edits(self) -> Iterator[_Edit]:
        """All edits, in no particular order."""
        for default in [*self.node.args.defaults, *(d for d in self.node.args.kw_defaults if d)]:
            yield from self.walk(default, self.node, {})
        yield from self.block(self.node.body)
        for statement in self.node.body:
            yield from self.walk(statement, self.node, {})

    def walk(self, node: ast.AST, parent: ast.AST, inner: dict[str, int]) -> Iterator[_Edit]:
        """The edits at a node and below; `inner` are the names of the comprehensions and lambdas around it."""
        # The positions inside of f-strings are not reliable before Python 3.12.
        if isinstance(node, ast.JoinedStr):
            return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return  # a docstring
        if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            targets = [name for part in node.generators for name in ast.walk(part.target) if isinstance(name, ast.Name)]
            inner = {**inner, **{name.id: name.lineno for name in targets}}
        if isinstance(node, ast.Lambda):
            inner = {**inner, **{arg.arg: node.lineno for arg in node.args.args}}
        visit = getattr(self, f"visit_{type(node).__name__}", None)
        if visit:
            yield from visit(node, parent)
        if isinstance(node, ast.Name):
            yield from self.names(node, parent, inner)
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "type_comment"):
                continue
            if isinstance(node, ast.Raise) and field == "exc":
                continue  # texts of errors are not part of what a program does
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift) and field == "right":
                continue  # another exponent may ask for more memory than there is
            children = value if isinstance(value, list) else [value]
            if children and isinstance(children[0], ast.stmt):
                yield from self.block(children)
            for child in children:
                if isinstance(child, ast.AST):
                    yield from self.walk(child, node, inner)

    # Expressions -----------------------------------------------------------------------------------------------------

    def visit_Compare(self, node: ast.Compare, parent: ast.AST) -> Iterator[_Edit]:
        operands = [node.left, *node.comparators]
        for left, op, right in zip(operands, node.ops, operands[1:], strict=False):
            token = _TOKENS[type(op)]
            if token in _BOUNDARY:
                yield from self.between("comparison-boundary", left, right, token, _BOUNDARY[token], node)
            if token in _FLIP:
                yield from self.between("comparison-flip", left, right, token, _FLIP[token], node)
            if token in ("not in", "is not"):
                yield from self.between("missing-not", left, right, token, token.replace("not", "").strip(), node)

    def visit_BinOp(self, node: ast.BinOp, parent: ast.AST) -> Iterator[_Edit]:
        token = _TOKENS.get(type(node.op), "")
        if self.is_sequence(node.left) or self.is_sequence(node.right):
            return  # there is no other operator for texts and lists
        if token == ">>" and not isinstance(node.right, ast.Constant):
            return  # shifting to the left by as much may fill the memory
        for new in _ARITHMETIC.get(token, ()):
            yield from self.between("arithmetic-operator", node.left, node.right, token, new, node)

    def is_sequence(self, node: ast.AST) -> bool:
        """Whether an expression is surely a text, a list or a tuple."""
        if isinstance(node, ast.Name):
            return self.notes.get(node.id, "").startswith(("str", "list", "tuple"))
        if isinstance(node, ast.BinOp):
            return self.is_sequence(node.left) or self.is_sequence(node.right)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
            return True
        return isinstance(node, ast.List | ast.ListComp | ast.Tuple | ast.JoinedStr) or (
            isinstance(node, ast.Constant) and isinstance(node.value, str)
        )

    def is_set(self, node: ast.AST) -> bool:
        """Whether an expression makes a set, or names one."""
        if isinstance(node, ast.Name):
            return node.id == "set" or node.id in self.sets
        return isinstance(node, ast.Set | ast.SetComp)

    def visit_BoolOp(self, node: ast.BoolOp, parent: ast.AST) -> Iterator[_Edit]:
        token = _TOKENS[type(node.op)]
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield from self.between("boolean-operator", left, right, token, "or" if token == "and" else "and", node)
        if len(node.values) == 2:
            for value in node.values:
                yield self.replace("dropped-condition", node, self.text(value))

    def visit_UnaryOp(self, node: ast.UnaryOp, parent: ast.AST) -> Iterator[_Edit]:
        if isinstance(node.op, ast.Not):
            # Brackets around the operand are outside of its span, and stay.
            yield _Edit("missing-not", self.start(node), self.end(node), self.text(node)[3:].lstrip())
        elif isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
            yield _Edit("arithmetic-operator", self.start(node), self.end(node), self.text(node)[1:].lstrip())

    def condition(self, test: ast.expr) -> Iterator[_Edit]:
        """The edit that negates a condition."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            token = _TOKENS[type(test.ops[0])]
            if token in _NEGATED:
                yield from self.between(
                    "negate-condition", test.left, test.comparators[0], token, _NEGATED[token], test
                )
            return
        text = self.text(test)
        simple = isinstance(test, ast.Name | ast.Call | ast.Attribute | ast.Subscript)
        yield self.replace("negate-condition", test, f"not {text}" if simple else f"not ({text})")

    def visit_IfExp(self, node: ast.IfExp, parent: ast.AST) -> Iterator[_Edit]:
        yield from self.condition(node.test)
        yield self.replace("dropped-else", node, self.text(node.body))
        yield self.replace("dropped-branch", node, self.text(node.orelse))

    def visit_comprehension(self, node: ast.comprehension, parent: ast.AST) -> Iterator[_Edit]:
        for test in node.ifs:
            yield from self.condition(test)

    def visit_Constant(self, node: ast.Constant, parent: ast.AST) -> Iterator[_Edit]:
        value = node.value
        if isinstance(value, bool):
            flag = isinstance(parent, ast.keyword) and parent.arg == "reverse"
            yield self.replace(
                "swapped-slice" if flag else "wrong-constant", node, str(not value), parent if flag else None
            )
        elif isinstance(value, int | float):
            near = isinstance(parent, ast.Compare | ast.Slice | ast.Subscript | ast.UnaryOp) or (
                isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Add | ast.Sub)
            )
            ranged = isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name) and parent.func.id == "range"
            operator = "off-by-one" if (near or ranged) and isinstance(value, int) else "wrong-constant"
            wide = isinstance(parent, ast.Compare | ast.BinOp | ast.Subscript | ast.UnaryOp) or ranged
            for new in (value + 1, value - 1):
                if new >= 0:
                    yield self.replace(operator, node, repr(new), parent if wide else None)
        elif isinstance(value, str):
            for text in self.near_texts(value):
                yield self.replace("wrong-constant", node, '"' + text.replace("\\", "\\\\").replace("\n", "\\n") + '"')

    @staticmethod
    def near_texts(value: str) -> Iterator[str]:
        """Texts that one may write by mistake."""
        if len(value) == 1:
            if value.isalnum() and value not in "zZ9":
                yield chr(ord(value) + 1)
            if value.isalpha():
                yield value.swapcase()
            if value == " ":
                yield ""
            if value in _SIGNS:
                yield _SIGNS[value]
        elif len(value) > 1 and '"' not in value:
            yield value[:-1]
            if value.swapcase() != value:
                yield value.swapcase()

    def visit_Call(self, node: ast.Call, parent: ast.AST) -> Iterator[_Edit]:
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        # The order of a set of texts differs from process to process.
        unordered = name == "sorted" and any(self.is_set(part) for arg in node.args for part in ast.walk(arg))
        if name in _METHODS and not unordered:
            end = self.end(node.func)
            yield _Edit("wrong-method", end - len(name), end, _METHODS[name], (self.start(node), self.end(node)))
        if name == "pop" and len(node.args) == 1 and isinstance(node.args[0], ast.Constant):
            yield self.replace("wrong-method", node, self.text(node.func) + "()")
        if name == "range":
            for arg in node.args[:2]:
                yield from self.shifted(arg, node)
        if any(isinstance(arg, ast.Starred) for arg in node.args) or name in ("min", "max", "isinstance"):
            return
        for left, right in zip(node.args, node.args[1:], strict=False):
            gap = self.data[self.end(left) : self.start(right)].decode()
            start, end = self.start(left), self.end(right)
            new = self.text(right) + gap + self.text(left)
            yield _Edit("swapped-arguments", start, end, new, (self.start(node), self.end(node)))

    def shifted(self, bound: ast.expr, shown: ast.AST) -> Iterator[_Edit]:
        """The edits that move a bound which is not a constant by one."""
        if isinstance(bound, ast.Constant | ast.UnaryOp):
            return
        text = self.text(bound)
        if isinstance(bound, ast.BinOp) and isinstance(bound.right, ast.Constant) and bound.right.value == 1:
            # Here the missing -1 or +1 is the usual mistake.
            if isinstance(bound.op, ast.Add | ast.Sub):
                yield self.replace("off-by-one", bound, self.text(bound.left), shown)
            return
        if isinstance(bound, ast.IfExp | ast.BoolOp | ast.Compare):
            text = f"({text})"
        for step in ("+ 1", "- 1"):
            yield self.replace("off-by-one", bound, f"{text} {step}", shown)

    def visit_Subscript(self, node: ast.Subscript, parent: ast.AST) -> Iterator[_Edit]:
        part = node.slice
        if not isinstance(part, ast.Slice):
            return
        for bound in (part.lower, part.upper):
            if bound is not None:
                yield from self.shifted(bound, node)
        inside = self.text(part)
        if part.step is not None:
            if inside == "::-1":
                yield self.replace("swapped-slice", part, "::1", node)
        elif part.lower is not None and part.upper is None:
            yield self.replace("swapped-slice", part, f":{self.text(part.lower)}", node)
        elif part.upper is not None and part.lower is None:
            yield self.replace("swapped-slice", part, f"{self.text(part.upper)}:", node)

    def names(self, node: ast.Name, parent: ast.AST, inner: dict[str, int]) -> Iterator[_Edit]:
        """The edits that put another local name in the place of one that is read."""
        called = isinstance(parent, ast.Call) and parent.func is node
        if not isinstance(node.ctx, ast.Load) or called or (node.id not in self.bound and node.id not in inner):
            return
        known = {name: line for name, line in self.bound.items() if line < node.lineno} | inner
        known.pop(node.id, None)
        note = self.notes.get(node.id)

        def unlikeness(name: str) -> tuple[bool, int, str]:
            # Names of the same type first, then those bound nearby.
            near = abs(known[name] - {**self.bound, **inner}[node.id])
            return (note is None or self.notes.get(name) != note, near, name)

        shown = parent if isinstance(parent, ast.expr) else None
        for name in sorted(known, key=unlikeness)[:_MAX_VARIABLES]:
            yield self.replace("wrong-variable", node, name, shown)

    # Statements ------------------------------------------------------------------------------------------------------

    def visit_If(self, node: ast.If, parent: ast.AST) -> Iterator[_Edit]:
        yield from self.condition(node.test)
        if node.orelse:
            elif_follows = isinstance(node.orelse[0], ast.If) and self.data.startswith(
                b"elif", self.start(node.orelse[0])
            )
            # From the end of the body, so that the indentation of what follows is untouched.
            start, end = self.end(node.body[-1]), self.end(node.orelse[-1])
            yield _Edit("dropped-branch" if elif_follows else "dropped-else", start, end, "")

    def visit_While(self, node: ast.While, parent: ast.AST) -> Iterator[_Edit]:
        yield from self.condition(node.test)

    def visit_Return(self, node: ast.Return, parent: ast.AST) -> Iterator[_Edit]:
        if node.value is not None and not isinstance(node.value, ast.Constant):
            yield self.replace("missing-return", node, self.text(node)[len("return") :].lstrip())

    def visit_Raise(self, node: ast.Raise, parent: ast.AST) -> Iterator[_Edit]:
        name = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        if isinstance(name, ast.Name) and name.id in _EXCEPTIONS:
            yield self.replace("wrong-exception", name, _EXCEPTIONS[name.id], node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler, parent: ast.AST) -> Iterator[_Edit]:
        if isinstance(node.type, ast.Name) and node.type.id in _EXCEPTIONS:
            yield self.replace("wrong-exception", node.type, _EXCEPTIONS[node.type.id])
        elif isinstance(node.type, ast.Tuple):
            for name in node.type.elts:
                yield self.replace("wrong-exception", node.type, self.text(name))

    def visit_Break(self, node: ast.Break, parent: ast.AST) -> Iterator[_Edit]:
        yield self.replace("loop-control", node, "continue")

    def visit_Continue(self, node: ast.Continue, parent: ast.AST) -> Iterator[_Edit]:
        yield self.replace("loop-control", node, "break")

    def visit_AugAssign(self, node: ast.AugAssign, parent: ast.AST) -> Iterator[_Edit]:
        token = _TOKENS[type(node.op)]
        texts = self.is_sequence(node.target) or self.is_sequence(node.value)
        for new in _AUGMENTED.get(token, ()):
            if not texts or new == "=":
                yield from self.between("augmented-assignment", node.target, node.value, token + "=", new, node)

    def block(self, statements: list[ast.stmt]) -> Iterator[_Edit]:
        """The edits that leave out a statement of a block, or put `pass` in its place where nothing would be left."""
        for statement in statements:
            if isinstance(statement, ast.If) and not statement.orelse:
                operator = "dropped-branch"
            elif self.is_droppable(statement):
                operator = "dropped-statement"
            else:
                continue
            start, end = self.start(statement), self.end(statement)
            if self.data.startswith(b"elif", start):
                continue
            docstring = isinstance(statements[0], ast.Expr) and isinstance(statements[0].value, ast.Constant)
            if len(statements) - docstring == 1:
                yield _Edit(operator, start, end, "pass")
            else:
                # Whole lines go, so that nothing in the file tells where one is missing.
                yield _Edit(operator, self.starts[statement.lineno - 1], self.starts[statement.end_lineno or 0], "")

    def is_droppable(self, statement: ast.stmt) -> bool:
        """Whether a statement can be left out without a NameError right afterwards."""
        if isinstance(statement, ast.Expr):
            return isinstance(statement.value, ast.Call)
        if isinstance(statement, ast.AugAssign):
            return True
        if not isinstance(statement, ast.Assign):
            return False
        targets = [name for target in statement.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        return all(self.bound.get(name.id, statement.lineno) < statement.lineno for name in targets)


def _mutant(data: bytes, function: ast.FunctionDef, starts: list[int], edit: _Edit) -> Mutant | None:
    """The mutant of an edit, or None if it changes nothing or is not valid Python."""
    new = edit.new.encode()
    mutated = data[: edit.start] + new + data[edit.end :]
    first, last = starts[function.lineno - 1], starts[function.end_lineno or 0]
    changed = mutated[first : last + len(mutated) - len(data)]
    if mutated == data:
        return None
    try:
        compile(changed, "<mutant>", "exec")
    except SyntaxError:
        return None
    start, end = edit.start, edit.end
    if edit.shown is not None and b"\n" not in data[edit.shown[0] : edit.shown[1]]:
        start, end = edit.shown
    after = data[start : edit.start] + new + data[edit.end : end]
    line = data.count(b"\n", 0, start) + 1
    return Mutant(edit.operator, function.name, line, data[start:end].decode(), after.decode(), mutated.decode())


@lru_cache(maxsize=256)
def _mutants(source: str) -> tuple[Mutant, ...]:
    data = source.encode()
    starts = [0]
    for line in data.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    starts[-1] = len(data)  # the last line may have no line feed
    found: list[Mutant] = []
    seen: set[str] = set()
    for function in syntax_tree(source).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        edits = set(_Function(data, starts, function).edits())
        for edit in sorted(
            edits, key=lambda e: (e.start, e.end, OPERATORS.index(e.operator), e.new, e.shown or (0, 0))
        ):
            mutant = _mutant(data, function, starts, edit)
            # Two operators may make the same file; the first one keeps it.
            if mutant is not None and mutant.source not in seen:
                seen.add(mutant.source)
                found.append(mutant)
    return tuple(found)


def mutants(source: str) -> list[Mutant]:
    """All mutants of a file, in a fixed order.

    Each has one mistake in one top-level function; docstrings, annotations, imports, decorators, the texts of errors
    and module constants are never changed, and neither is the formatting of anything else.

    Args:
        source: The text of a Python file.

    Raises:
        SyntaxError: If the file is not valid Python.
    """
    return list(_mutants(source))
