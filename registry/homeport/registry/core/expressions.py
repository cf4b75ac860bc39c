"""The grammar of filter expressions: Consul's small language (go-bexpr), read into what it says.

    or      ::= and ("or" and)*                 and   ::= not ("and" not)*
    not     ::= "not" not | "(" or ")" | match
    match   ::= selector ("==" | "!=" | ["not"] "contains" | ["not"] "matches") value
              | selector "is" ["not"] "empty"
              | value ["not"] "in" selector
    selector::= name ("." name | "." digits | "[" string "]")* | a JSON pointer in double quotes: "/Meta/a-b"
    value   ::= selector | number | string      string ::= "..." with Go's escapes | `...` as it is

`not` binds closest, then `and`, then `or`. Every mistake is told with its column.
"""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from homeport.client.core.errors import InvalidArgument

Operator = Literal["==", "!=", "in", "not in", "is empty", "is not empty", "matches", "not matches"]

EXPRESSION_CHARS_MAX: Final = 8190  # as long as a request's first line may be
NESTED_MAX: Final = 64  # parentheses and `not`s within each other; far more than anybody reads


class Match(msgspec.Struct, frozen=True):
    """One comparison; columns count from 1."""

    selector: tuple[str, ...]
    column: int
    operator: Operator
    value: str = ""
    value_column: int = 0


class Not(msgspec.Struct, frozen=True):
    operand: Expression


class Every(msgspec.Struct, frozen=True):
    operands: tuple[Expression, ...]


class Some(msgspec.Struct, frozen=True):
    operands: tuple[Expression, ...]


Expression = Match | Not | Every | Some


def parse(text: str) -> Expression:
    """Read an expression.

    Raises:
        InvalidArgument: it is none; message and `details` say in which column.
    """
    if len(text) > EXPRESSION_CHARS_MAX:
        raise InvalidArgument(f"filter of {len(text)} characters; allowed: {EXPRESSION_CHARS_MAX}", field="filter")
    return _Parser(text).whole()


_SPACE: Final = re.compile(r"[ \t\r\n]*")
_WORD: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9_/]*")
_STEP: Final = re.compile(r"\.([a-zA-Z][a-zA-Z0-9_/]*|[0-9]+)")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
_AFTER_NUMBER: Final = re.compile(r"[ \t\r\n)]|\Z")
_QUOTED: Final = re.compile(r'"[^"]*"|`[^`]*`')
_POINTER: Final = re.compile(r"(?:/[\w\-.~:|]+)+")
_ESCAPE: Final = re.compile(r"\\(?:([abfnrtv\\\"])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|)")
_PLAIN_ESCAPES: Final = dict(zip('abfnrtv\\"', '\a\b\f\n\r\t\v\\"', strict=True))


class _Operand(msgspec.Struct, frozen=True):
    """What stands on a side of an operator: `text` as a value, `path` if it can be a selector."""

    text: str
    path: tuple[str, ...]
    column: int


class _Parser:
    """Reads from left to right; `at` is where it is."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.nested = 0

    def whole(self) -> Expression:
        found = self.or_()
        if self.at < len(self.text):
            raise self.wrong("expected 'and', 'or' or the end" if self.text[self.at] != ")" else "')' closes nothing")
        return found

    def or_(self) -> Expression:
        operands = [self.and_()]
        while self.word("or"):
            operands.append(self.and_())
        return operands[0] if len(operands) == 1 else Some(tuple(operands))

    def and_(self) -> Expression:
        operands = [self.not_()]
        while self.word("and"):
            operands.append(self.not_())
        return operands[0] if len(operands) == 1 else Every(tuple(operands))

    def not_(self) -> Expression:
        self.space()
        began = self.at
        parenthesis = self.text.startswith("(", began)
        if not parenthesis and not self.word("not"):
            return self.match()
        if self.nested == NESTED_MAX:
            raise self.wrong(f"nested more than {NESTED_MAX} deep", began)
        self.nested += 1
        if parenthesis:
            self.at += 1
            found = self.or_()
            if not self.sign(")"):
                raise self.wrong(
                    "expected ')', 'and' or 'or'" if self.at < len(self.text) else "'(' is never closed", began
                )
        else:
            found = Not(self.not_())
        self.nested -= 1
        return found

    def match(self) -> Expression:
        left = self.operand("a selector or a value")
        for sign in ("==", "!="):
            if self.sign(sign):
                return self.with_value(left, "==" if sign == "==" else "!=")
        if self.word("is"):
            negated = self.word("not")
            if not self.word("empty"):
                raise self.wrong("expected 'empty'" if negated else "expected 'empty' or 'not empty'")
            path = self.selector(left)
            return Match(path, left.column, "is not empty" if negated else "is empty")
        negated = self.word("not")
        if self.word("in"):
            right = self.operand("a selector")
            path = self.selector(right)
            return Match(path, right.column, "not in" if negated else "in", left.text, left.column)
        if self.word("contains"):
            return self.with_value(left, "not in" if negated else "in")
        if self.word("matches"):
            return self.with_value(left, "not matches" if negated else "matches")
        allowed = "in, contains or matches" if negated else "==, !=, [not] in, contains or matches, is [not] empty"
        raise self.wrong(f"expected an operator: {allowed}")

    def with_value(self, left: _Operand, operator: Operator) -> Match:
        path = self.selector(left)
        value = self.operand("a value")
        return Match(path, left.column, operator, value.text, value.column)

    def selector(self, operand: _Operand) -> tuple[str, ...]:
        if not operand.path:
            raise self.wrong(f"{operand.text!r} is no selector", operand.column - 1)
        return operand.path

    def operand(self, expected: str) -> _Operand:
        self.space()
        column = self.at + 1
        if found := _WORD.match(self.text, self.at):
            self.at = found.end()
            path = (found[0], *self.steps())
            return _Operand(self.text[column - 1 : self.at] if len(path) > 1 else found[0], path, column)
        if found := _NUMBER.match(self.text, self.at):
            if not _AFTER_NUMBER.match(self.text, found.end()):
                raise self.wrong("no number: quote it if it is text")
            self.at = found.end()
            return _Operand(found[0], (), column)
        if self.text[self.at : self.at + 1] in ('"', "`"):
            quoted = self.quoted()
            pointer = self.text[column - 1] == '"' and _POINTER.fullmatch(quoted)
            steps = quoted[1:].split("/") if pointer else ()
            return _Operand(quoted, tuple(step.replace("~1", "/").replace("~0", "~") for step in steps), column)
        raise self.wrong(f"expected {expected}")

    def steps(self) -> list[str]:
        """What follows a selector's first name, with no space before it."""
        found: list[str] = []
        while self.at < len(self.text):
            if step := _STEP.match(self.text, self.at):
                self.at = step.end()
                found.append(step[1])
            elif self.text[self.at] == "[":
                began = self.at
                self.at += 1
                self.space()
                if self.text[self.at : self.at + 1] not in ('"', "`"):
                    raise self.wrong("expected a key in quotes")
                found.append(self.quoted())
                if not self.sign("]"):
                    raise self.wrong("'[' is never closed", began)
            else:
                break
        return found

    def quoted(self) -> str:
        found = _QUOTED.match(self.text, self.at)
        if found is None:
            raise self.wrong("the string never ends")
        inner = found[0][1:-1]
        if found[0][0] == '"':
            if "\n" in inner:
                raise self.wrong("a string in double quotes has one line; use backticks or \\n")
            inner = _ESCAPE.sub(self.unescaped, inner)
        self.at = found.end()
        return inner

    def unescaped(self, escape: re.Match[str]) -> str:
        plain, *codes = escape.groups()
        if plain:
            return _PLAIN_ESCAPES[plain]
        for code, base in zip(codes, (16, 16, 16, 8), strict=True):
            if code is not None:
                number = int(code, base)
                if number > 0x10FFFF or 0xD800 <= number < 0xE000 or (base == 8 and number > 0xFF):
                    break
                return chr(number)
        raise self.wrong(f"{escape[0]!r} is no escape that Go knows", self.at + 1 + escape.start())

    def word(self, word: str) -> bool:
        """Whether this word comes next; if so, go past it."""
        self.space()
        found = _WORD.match(self.text, self.at)
        if found is None or found[0] != word:
            return False
        self.at = found.end()
        return True

    def sign(self, sign: str) -> bool:
        """The same for signs."""
        self.space()
        if not self.text.startswith(sign, self.at):
            return False
        self.at += len(sign)
        return True

    def space(self) -> None:
        found = _SPACE.match(self.text, self.at)
        assert found is not None
        self.at = found.end()

    def wrong(self, what: str, at: int | None = None) -> InvalidArgument:
        return wrong(what, (self.at if at is None else at) + 1)


def wrong(what: str, column: int) -> InvalidArgument:
    return InvalidArgument(f"filter: column {column}: {what}", field="filter", column=column)
