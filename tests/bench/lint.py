"""What Apple's compiler rejects and clang accepts, found in clang's syntax tree of the author's own text.

Each rule has a name, which `Diagnostic.rule` carries:

    address-space     pointer or reference without device, constant, threadgroup or thread
    method-space      unqualified method called on an object in device, constant or threadgroup memory
    bfloat            implicit conversion to bfloat, or from bfloat to half
    global            variable at program scope outside `constant`
    static            static variable inside a function
    goto, recursion, lambda, virtual
    vector-compare    comparison of vectors used as numbers (bool vectors in Metal, integer vectors in clang)
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tests.bench.faults import Diagnostic

Node = Mapping[str, Any]
_SPACES = ("__global", "__local", "__private", "__constant")
_POINTER = re.compile(r"(?P<pointee>[^*&]*)[*&]")
_DECLARED = ("ParmVarDecl", "VarDecl", "FieldDecl")
_CASTS = ("CStyleCastExpr", "CXXFunctionalCastExpr", "CXXStaticCastExpr", "CXXReinterpretCastExpr")
_COMPARISONS = ("==", "!=", "<", ">", "<=", ">=")
_VECTOR = re.compile(
    r"ext_vector_type|^(?:const )?(?:__\w+ )?(?:float|half|bfloat|u?(?:char|short|int|long))[234]$|vec<"
)
_TAKES_BOOLS = ("any", "all", "select")


class Lint:
    """Walks one syntax tree. `source` is the translation unit, `first_line` the line of it that the author calls 1."""

    def __init__(self, source: str, first_line: int) -> None:
        self._encoded_starts = [0]
        for line in source.split("\n"):
            self._encoded_starts.append(self._encoded_starts[-1] + len(line.encode()) + 1)
        self._lines = source.split("\n")
        self._first = first_line
        self._found: dict[tuple[str, int, int], Diagnostic] = {}
        self._methods: dict[str, str] = {}
        self._calls: dict[str, set[str]] = {}
        self._functions: dict[str, Node] = {}
        self._first_declared: dict[str, str] = {}

    def run(self, tree: Node) -> list[Diagnostic]:
        """All violations, in order of place."""
        self._collect(tree, None)
        self._walk(tree, (), None)
        self._recursion()
        return sorted(self._found.values(), key=lambda d: (d.line, d.column, d.rule))

    def _collect(self, node: Node, function: str | None) -> None:
        kind = node.get("kind")
        if kind == "CXXMethodDecl":
            self._methods[node["id"]] = _type(node)
        if kind in ("FunctionDecl", "CXXMethodDecl"):
            earlier = str(node.get("previousDecl", node["id"]))
            function = self._first_declared.get(earlier, earlier)
            self._first_declared[node["id"]] = function
            self._functions[function] = node
            self._calls.setdefault(function, set())
        if kind == "DeclRefExpr" and function is not None:
            target = node.get("referencedDecl", {})
            if target.get("kind") == "FunctionDecl":
                self._calls[function].add(self._first_declared.get(target["id"], target["id"]))
        if kind == "MemberExpr" and function is not None and "referencedMemberDecl" in node:
            self._calls[function].add(node["referencedMemberDecl"])
        for child in _children(node):
            self._collect(child, function)

    def _walk(self, node: Node, parents: tuple[Node, ...], function: Node | None) -> None:
        kind = str(node.get("kind"))
        if node.get("isImplicit"):
            return
        if kind in _DECLARED:
            self._declaration(node, function)
        elif kind in ("FunctionDecl", "CXXMethodDecl"):
            result = _type(node).split("(")[0]
            self._spaces(node, result, f"the result of {node.get('name')}")
            if node.get("virtual"):
                self._add("virtual", node, "virtual functions do not exist in Metal")
            function = node
        elif kind in _CASTS:
            self._spaces(node, _type(node), "this cast")
        elif kind in ("GotoStmt", "LabelStmt", "IndirectGotoStmt"):
            self._add("goto", node, "goto does not exist in Metal")
        elif kind == "LambdaExpr":
            self._add("lambda", node, "lambdas are not allowed in Metal")
        elif kind in ("CXXMemberCallExpr", "CXXOperatorCallExpr"):
            self._method(node)
        elif kind == "ImplicitCastExpr":
            self._implicit(node)
        elif kind == "CompoundAssignOperator":
            compute = node.get("computeResultType", {}).get("qualType", "")
            if _is_bfloat(_type(node)) and not _is_bfloat(compute):
                self._add("bfloat", node, "this assignment narrows to bfloat: write the conversion")
        elif kind == "BinaryOperator" and node.get("opcode") in _COMPARISONS:
            self._comparison(node, parents)
        for child in _children(node):
            self._walk(child, (*parents, node), function)

    def _declaration(self, node: Node, function: Node | None) -> None:
        spelled = _type(node)
        name = node.get("name", "this parameter")
        self._spaces(node, spelled, str(name))
        if node.get("kind") != "VarDecl":
            return
        constant = "__constant" in spelled
        if function is None and not constant:
            self._add("global", node, f"{name} is a program-scope variable: it must be in the constant address space")
        elif function is not None and node.get("storageClass") == "static" and not constant:
            self._add("static", node, f"{name} is a static variable: Metal has none outside constant")

    def _spaces(self, node: Node, spelled: str, what: str) -> None:
        """Every pointee must say where it lives; where the pointer itself lives is its own declaration's matter."""
        bare = re.sub(r"\((?:__\w+ )?([*&])\)", r"\1", re.sub(r"\[[^\]]*\]", "", spelled)).split("(")[0]
        while "<" in bare and bare != (shorter := re.sub(r"<[^<>]*>", "", bare)):
            bare = shorter
        if any(not any(space in match["pointee"] for space in _SPACES) for match in _POINTER.finditer(bare)):
            message = f"{what} has type {_plain(spelled)}: say device, constant, threadgroup or thread"
            self._add("address-space", node, message)

    def _method(self, node: Node) -> None:
        children = list(_children(node))
        if not children:
            return
        member = children[0]
        if member.get("kind") != "MemberExpr":
            return
        declared = self._methods.get(str(member.get("referencedMemberDecl")))
        if declared is None:
            return
        for base in _children(member):
            if base.get("castKind") != "AddressSpaceConversion":
                continue
            origin = " ".join(_type(child) for child in _children(base))
            space = next((s for s in ("__global", "__local", "__constant") if s in origin), None)
            if space is not None and space not in declared.split(")")[-1]:
                word = {"__global": "device", "__local": "threadgroup", "__constant": "constant"}[space]
                self._add(
                    "method-space",
                    node,
                    f"{member.get('name')} is called on an object in {word} memory: declare it `... const {word}`",
                )

    def _implicit(self, node: Node) -> None:
        if node.get("isPartOfExplicitCast") or node.get("castKind") != "FloatingCast":
            return
        inner = " ".join(_type(child) for child in _children(node))
        if _is_bfloat(_type(node)) and not _is_bfloat(inner):
            self._add("bfloat", node, f"{_plain(inner)} does not become bfloat by itself: write bfloat(...)")
        elif _type(node).endswith("half") and _is_bfloat(inner):
            self._add("bfloat", node, "bfloat does not become half by itself: write half(...)")

    def _comparison(self, node: Node, parents: tuple[Node, ...]) -> None:
        if not any(_VECTOR.search(_type(child)) for child in _children(node)):
            return
        for parent in reversed(parents):
            if parent.get("kind") in (
                "ImplicitCastExpr",
                "ParenExpr",
                "BinaryOperator",
                "UnaryOperator",
                "MaterializeTemporaryExpr",
            ):
                continue
            if parent.get("kind") == "CallExpr" and _callee(parent) in _TAKES_BOOLS:
                return
            break
        self._add(
            "vector-compare", node, "a comparison of vectors is a bool vector in Metal: give it to any, all or select"
        )

    def _recursion(self) -> None:
        for start, node in self._functions.items():
            seen: set[str] = set()
            todo = list(self._calls.get(start, ()))
            while todo:
                at = todo.pop()
                if at == start:
                    self._add("recursion", node, f"{node.get('name')} calls itself, directly or through others")
                    break
                if at not in seen:
                    seen.add(at)
                    todo.extend(self._calls.get(at, ()))

    def _add(self, rule: str, node: Node, message: str) -> None:
        line, column = self._place(node)
        if line < 1:
            return
        text = self._lines[line + self._first - 2] if line + self._first - 2 < len(self._lines) else ""
        self._found.setdefault((rule, line, column), Diagnostic(rule, line, column, message, text))

    def _place(self, node: Node) -> tuple[int, int]:
        for spot in (node.get("loc"), node.get("range", {}).get("begin")):
            if not spot:
                continue
            spot = spot.get("expansionLoc", spot)
            if "offset" in spot:
                index = bisect.bisect_right(self._encoded_starts, spot["offset"]) - 1
                return index + 2 - self._first, int(spot.get("col", 1))
        return 1, 1


def _children(node: Node) -> Iterator[Node]:
    for child in node.get("inner", ()):
        if child:
            yield child


def _type(node: Node) -> str:
    return str(node.get("type", {}).get("qualType", ""))


def _is_bfloat(spelled: str) -> bool:
    words = re.split(r"[^\w]+", spelled)
    return "bfloat" in words or "__bf16" in words or "bfloat16_t" in words


def _callee(call: Node) -> str:
    """Name of the function a call names, through the conversions around it."""
    node: Node | None = next(_children(call), None)
    while node is not None and node.get("kind") in ("ImplicitCastExpr", "ParenExpr"):
        node = next(_children(node), None)
    return str(node.get("referencedDecl", {}).get("name") or node.get("name", "")) if node is not None else ""


def _plain(spelled: str) -> str:
    """A type as Metal spells it."""
    for ours, theirs in (
        ("__generic ", ""),
        ("__global", "device"),
        ("__local", "threadgroup"),
        ("__private", "thread"),
        ("__constant", "constant"),
    ):
        spelled = spelled.replace(ours, theirs)
    return spelled.replace("*thread", "*").strip()
