"""PTX text -> a module: its variables and functions, instruction by instruction.

Reads what NVVM writes: one entry, helper functions, variables with integer contents. Registers that inner
scopes declare again get names of their own.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class PtxError(Exception):
    """The PTX is malformed or uses what is not implemented."""


class Register(NamedTuple):
    name: str
    type: str  # "pred", "b32", "f64", ...


class Constant(NamedTuple):
    bits: int  # of a float: its IEEE 754 pattern


class Special(NamedTuple):
    name: str  # "tid.x", ...


class Symbol(NamedTuple):
    name: str  # of a variable, a parameter, a function or a label


class Address(NamedTuple):
    base: Register | Symbol
    offset: int


class Group(NamedTuple):
    members: tuple[Operand, ...]  # {a, b} of a vector, (a, b) of a call


Operand = Register | Constant | Special | Symbol | Address | Group
TYPE = re.compile(r"pred|[busf](8|16|32|64)")


class Opcode(NamedTuple):
    """mul.wide.s32 -> "mul", ("wide",), ("s32",); of a conversion both types."""

    name: str
    modifiers: tuple[str, ...]
    types: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Opcode:
        name, *parts = text.split(".")
        types = tuple(p for p in parts if TYPE.fullmatch(p))
        return cls(name, tuple(p for p in parts if p not in types), types)


class Guard(NamedTuple):
    predicate: Register
    wanted: bool  # False: executed where the predicate is false


class Instruction(NamedTuple):
    opcode: Opcode
    operands: tuple[Operand, ...]
    guard: Guard | None
    line: int
    text: str


class Label(NamedTuple):
    name: str


class Variable(NamedTuple):
    space: str
    name: str
    size: int  # bytes
    align: int
    content: np.ndarray | None  # uint8


@dataclass
class Function:
    name: str
    parameters: list[Variable]
    returned: list[Variable]
    body: list[Instruction | Label] = field(default_factory=list)
    local_variables: list[Variable] = field(default_factory=list)
    call_parameters: list[Variable] = field(default_factory=list)


@dataclass
class Module:
    entry: Function
    functions: dict[str, Function]  # but the entry
    variables: list[Variable]


_SPACE = re.compile(r"\s*")
_DIRECTIVE = re.compile(r"\s*\.(version|target|address_size)\b[^\n]*")
_HEADER = re.compile(r"\s*(?:\.(?:visible|weak|extern)\s+)?\.(entry|func)\b([^{;]*)([{;])")
_FUNCTION = re.compile(r"\s*(?:\(([^)]*)\))?\s*([\w$]+)\s*(?:\(([^)]*)\))?")
_STATEMENT = re.compile(r"\s*([^\s;{}][^;{}]*(?:\{[^{}]*\}[^;{}]*)*);")
_LABEL = re.compile(r"\s*([\w$]+):")
_BRACE = re.compile(r"\s*([{}])")
_VARIABLE = re.compile(
    r"(?:\.(?:visible|weak|common)\s+)*\.(global|const|shared|local|param)\s+(?:\.align\s+(\d+)\s+)?"
    r"\.([bufs]\d+)\s+([\w$]+)(?:\[(\d+)\])?"
)
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.S)
_GUARDED = re.compile(r"@(!?)([%\w$]+)\s+(.*)", re.S)
_FLOAT = re.compile(r"0[fFdD]([0-9A-Fa-f]+)")
_INTEGER = re.compile(r"-?(0[xX][0-9a-fA-F]+|\d+)U?")
_SPECIAL = re.compile(r"%((?:n?tid|n?ctaid)\.[xyz])")


def parse_module(ptx: str) -> Module:
    """Raises ``PtxError``."""
    return _ModuleParser(re.sub(r"//[^\n]*", "", ptx)).module()


def split_operands(text: str) -> list[str]:
    """At the commas outside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def parse_variable(text: str) -> Variable:
    """.global, .const, .shared, .local or .param; zeros where .common asks for them."""
    declared, _, values = text.partition("=")
    match = _VARIABLE.search(declared)
    if not match:
        raise PtxError(f"declaration {text[:80]!r}")
    space, align, type_, name, count = match.groups()
    item = np.dtype(f"u{int(type_[1:]) // 8}")
    size = item.itemsize * int(count or 1)
    content = np.zeros(size, np.uint8) if values or ".common" in declared else None
    if content is not None and values:
        numbers = [int(number) for number in re.findall(r"\d+", values)]
        content.view(item)[: len(numbers)] = numbers
    return Variable(space, name, size, int(align or item.itemsize), content)


class _ModuleParser:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.line_starts = [0, *(newline.end() for newline in re.finditer("\n", text))]

    def module(self) -> Module:
        entry, functions, variables = None, {}, []
        while self._skip_space() < len(self.text):
            if self._take(_DIRECTIVE):
                continue
            if header := self._take(_HEADER):
                if header[3] == "{":
                    function = self._function(header[2])
                    functions[function.name] = function
                    entry = function if header[1] == "entry" else entry
            elif statement := self._take(_STATEMENT):
                variables.append(parse_variable(statement[1]))
            else:
                raise PtxError(f"line {self._line()}: neither a variable nor a function")
        if entry is None:
            raise PtxError("no entry")
        del functions[entry.name]
        return Module(entry, functions, variables)

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()
        return match

    def _skip_space(self) -> int:
        self._take(_SPACE)
        return self.at

    def _line(self) -> int:
        return bisect_right(self.line_starts, self._skip_space())

    def _function(self, header: str) -> Function:
        match = _FUNCTION.match(header)
        if not match:
            raise PtxError(f"line {self._line()}: function without a name")
        returned, name, given = match.groups()
        parameters, results = ([parse_variable(p) for p in split_operands(text or "")] for text in (given, returned))
        parser, depth = _BodyParser(Function(name, parameters, results)), 1
        while depth:
            line = self._line()
            if label := self._take(_LABEL):
                parser.function.body.append(Label(label[1]))
            elif brace := self._take(_BRACE):
                depth += 1 if brace[1] == "{" else -1
                parser.scope(brace[1] == "{")
            elif statement := self._take(_STATEMENT):
                parser.statement(" ".join(statement[1].split()), line)
            else:
                raise PtxError(f"line {line}: no statement")
        return parser.function


class _BodyParser:
    def __init__(self, function: Function) -> None:
        self.function = function
        self.scopes: list[dict[str, Register | Symbol]] = [{}]
        self.declared = 0  # scopes so far

    def scope(self, opened: bool) -> None:
        if opened:
            self.scopes.append({})
            self.declared += 1
        else:
            self.scopes.pop()

    def statement(self, text: str, line: int) -> None:
        if text.startswith(".reg"):
            self._registers(text)
        elif text.startswith(".local"):
            self.function.local_variables.append(parse_variable(text))
        elif text.startswith(".param"):
            variable = parse_variable(text)
            own = Symbol(self._own(variable.name))
            self.scopes[-1][variable.name] = own
            self.function.call_parameters.append(variable._replace(name=own.name))
        elif not text.startswith(".pragma"):
            self.function.body.append(self._instruction(text, line))

    def _own(self, name: str) -> str:
        """A name that no other scope has."""
        return f"{name}.{self.declared}" if len(self.scopes) > 1 else name

    def _registers(self, text: str) -> None:
        match = _REGISTERS.match(text)
        if not match:
            raise PtxError(f"declaration {text!r}")
        for name in split_operands(match[2]):
            numbered = re.fullmatch(r"(.*)<(\d+)>", name)
            names = [f"{numbered[1]}{k}" for k in range(int(numbered[2]))] if numbered else [name]
            self.scopes[-1].update({n: Register(self._own(n), match[1]) for n in names})

    def _instruction(self, text: str, line: int) -> Instruction:
        guard, rest = None, text
        if match := _GUARDED.match(text):
            predicate = self._operand(match[2])
            if not isinstance(predicate, Register):
                raise PtxError(f"line {line}: guard {match[2]!r}")
            guard, rest = Guard(predicate, not match[1]), match[3]
        opcode, _, operands = rest.partition(" ")
        return Instruction(
            Opcode.parse(opcode), tuple(self._operand(o) for o in split_operands(operands)), guard, line, text
        )

    def _operand(self, text: str) -> Operand:
        if text[0] in "{(":
            return Group(tuple(self._operand(t) for t in split_operands(text[1:-1])))
        if text[0] == "[":
            base, _, offset = text[1:-1].replace(" ", "").partition("+")
            inner = self._operand(base)
            if not isinstance(inner, Register | Symbol):
                raise PtxError(f"address {text!r}")
            return Address(inner, int(offset or 0))
        for scope in reversed(self.scopes):
            if text in scope:
                return scope[text]
        if match := _FLOAT.fullmatch(text):
            return Constant(int(match[1], 16))
        if _INTEGER.fullmatch(text):
            return Constant(int(text.rstrip("U"), 0))
        if match := _SPECIAL.fullmatch(text):
            return Special(match[1])
        if text[0] == "%":
            raise PtxError(f"register {text} is not declared")
        return Symbol(text)
