"""Filter expressions: what they mean, which are refused and where, and that none of them holds anybody up."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from homeport.client.core.errors import InvalidArgument
from homeport.registry.core import filters
from homeport.registry.core.filters import compiled
from homeport.registry.fronts.consul.bodies import go_name

SEED = 20_260_411


class Check(msgspec.Struct, frozen=True, kw_only=True, rename=go_name):
    status: str
    tags: tuple[str, ...] = ()


class Weights(msgspec.Struct, frozen=True, kw_only=True, rename=go_name):
    passing: int = 1
    share: float = 0.5


class Row(msgspec.Struct, frozen=True, kw_only=True, rename=go_name):
    name: str = "web"
    port: int = 80
    tags: tuple[str, ...] = ("a", "b/c")
    meta: dict[str, str] = msgspec.field(default_factory=lambda: {"version": "1.2", "a-b": "x", "a/b": "y"})
    native: bool = False
    weights: Weights = Weights()
    proxy: Weights | None = None
    addresses: dict[str, Weights] = msgspec.field(default_factory=lambda: {"lan": Weights(passing=7)})
    checks: tuple[Check, ...] = (Check(status="passing", tags=("t",)), Check(status="critical"))
    create_index: int = 3


def holds(text: str, row: Row = Row()) -> bool:  # noqa: B008 - frozen
    return compiled(text, Row)(row)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Name == web", True),
        ("Name==web", True),
        ('Name == "web"', True),
        ("Name == `web`", True),
        ("Name != web", False),
        ('"e" in Name', True),
        ("e in Name", True),
        ("Name contains eb", True),
        ("Name not contains eb", False),
        ("Name matches `^w.b$`", True),
        ('Name not matches "^w[^e]b$"', True),
        ('Name matches "\\\\x77eb"', True),
        ("Port == 80", True),
        ('Port == "80"', True),
        ("Port != 80", False),
        ("Port == -80", False),
        ("Native == false", True),
        ("Native != T", True),
        ("Weights.Share == 0.5", True),
        ("a in Tags", True),
        ('"b/c" in Tags', True),
        ("b/c in Tags", True),
        ("x not in Tags", True),
        ("Tags contains a", True),
        ("Tags is empty", False),
        ("Tags is not empty", True),
        ("version in Meta", True),
        ("Meta contains version", True),
        ('Meta.version == "1.2"', True),
        ("Meta.version == 1.2", True),
        ('Meta["a-b"] == x', True),
        ("Meta[ `a/b` ] == y", True),
        ('"/Meta/a-b" == x', True),
        ('"/Meta/a~1b" == y', True),
        ('x == "/Meta/a-b" or "/Meta/a-b" == x', None),
        ("Meta.none == x", False),
        ("Meta.none != x", True),
        ("Meta.none matches x", False),
        ("Meta.none not matches x", True),
        ("x in Meta.none", False),
        ("x not in Meta.none", True),
        ("Addresses.lan.Passing == 7", True),
        ("Addresses.wan.Passing == 7", False),
        ("Addresses.wan.Passing != 7", True),
        ("Proxy.Passing == 1", False),
        ("Proxy.Passing != 1", True),
        ("Checks is not empty", True),
        ("Checks.Status == critical", True),
        ("Checks.Status != critical", True),  # of any of them
        ("not Checks.Status == critical", False),
        ("t in Checks.Tags", True),
        ("Checks.Tags is empty", True),
    ],
)
def test_comparisons_mean_what_they_mean_in_consul(text: str, expected: bool | None) -> None:
    if expected is None:
        with pytest.raises(InvalidArgument):
            compiled(text, Row)
    else:
        assert holds(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Name == x and Name == x or Name == web", True),
        ("Name == web or Name == x and Name == x", True),
        ("(Name == web or Name == x) and Name == x", False),
        ("not Name == x and Name == x", False),
        ("not (Name == x and Name == x)", True),
        ("not not Name == web", True),
        ("not Name == x or Name == x", True),
        (" ( ( Name == web ) ) ", True),
        ("\n Name == web\tand\r\nPort == 80 ", True),
        ("Name == and or Name == web", True),  # a value may be any word
        ("Name == not", False),
    ],
)
def test_not_binds_closest_then_and_then_or(text: str, expected: bool) -> None:
    assert holds(text) is expected


@pytest.mark.parametrize(
    ("text", "column", "said"),
    [
        ("", 1, "expected a selector"),
        ("Name", 5, "expected an operator"),
        ("Name = web", 6, "expected an operator"),
        ("Name == ", 9, "expected a value"),
        ("Name == we-b", 11, "expected 'and'"),
        ("Name == web and", 16, "expected a selector"),
        ("Name == web Port == 80", 13, "expected 'and'"),
        ("(Name == web", 1, "never closed"),
        ("Name == web)", 12, "closes nothing"),
        ('Name == "web', 9, "never ends"),
        ("Name == `web", 9, "never ends"),
        ('Name matches "\\d"', 15, "no escape"),
        ("Name matches `(`", 14, "no regular expression"),
        ("Name matches `(?=x)`", 14, "no regular expression"),
        ("Port == 1.2.3", 9, "no number"),
        ("Port == web", 9, "no whole number"),
        ("Port == 99999999999999999999999", 9, "no whole number"),
        ("Native == maybe", 11, "neither true nor false"),
        ("Weights.Share == x", 18, "no number"),
        ("Port matches x", 1, "allowed: ==, !="),
        ("Name is empty", 1, "allowed: =="),
        ("Tags == a", 1, "allowed: in"),
        ("Weights == 1", 1, "select one of its fields: Passing, Share"),
        ("Port == 80 and Nam == web", 16, "no field 'Nam'; allowed: Addresses, Checks"),
        ("name == web", 1, "no field 'name'"),
        ("CreateIndex == 3", 1, "no field 'CreateIndex'"),
        ("Name.First == x", 1, "nothing within"),
        ("Tags.First == x", 1, "nothing within"),
        ("Checks.Nope == x", 1, "no field 'Nope'"),
        ("Meta[version] == x", 6, "key in quotes"),
        ('Meta["version" == x', 5, "never closed"),
        ("Name is full", 9, "expected 'empty'"),
        ("Name not == web", 10, "expected an operator"),
        ("80 == Port", 1, "no selector"),
        ('"web" == Name', 1, "no selector"),
        ("web in `Tags`", 8, "no selector"),
        ("(" * 65 + "Name == web" + ")" * 65, 65, "nested"),
    ],
)
def test_a_mistake_is_told_with_its_column(text: str, column: int, said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        compiled(text, Row)
    assert said in caught.value.message
    assert caught.value.details["column"] == column
    assert f"column {column}: " in caught.value.message


def test_an_expression_is_compiled_once_and_a_bounded_number_is_kept() -> None:
    assert compiled("Name == web", Row) is compiled("Name == web", Row)
    for number in range(2 * filters.KEPT):
        compiled(f"Port == {number}", Row)
    assert compiled.cache_info().currsize <= filters.KEPT


def test_a_regular_expression_that_makes_others_backtrack_forever_does_not() -> None:
    assert not compiled("Name matches `^(a+)+$`", Row)(Row(name="a" * 50_000 + "b"))


def test_a_long_chain_is_no_deep_one() -> None:
    text = " or ".join(["Port == 1"] * 500)
    assert not holds(text)
    assert holds(text + " or Port == 80")


def test_an_expression_has_an_end() -> None:
    with pytest.raises(InvalidArgument, match="allowed: 8190"):
        compiled("Port == 80" + " " * 9000, Row)


def _random_expression(rng: random.Random, depth: int) -> tuple[str, bool]:
    """An expression with what it comes to, worked out beside the text."""
    kind = rng.choice(["match", "and", "or", "not", "parentheses"]) if depth else "match"
    match kind:
        case "match":
            value = rng.choice([True, False])
            return f"Port {rng.choice(['==', '!='])} 80".replace(
                "!=" if value else "==", "==" if value else "!="
            ), value
        case "not":
            text, value = _random_expression(rng, 0)
            return f"not {text}", not value
        case "parentheses":
            text, value = _random_expression(rng, depth - 1)
            return f"( {text} )", value
        case "and":
            left, one = _random_expression(rng, depth - 1)
            right, other = _random_expression(rng, depth - 1)
            return f"({left}) and ({right})", one and other
        case _:
            left, one = _random_expression(rng, depth - 1)
            right, other = _random_expression(rng, depth - 1)
            return f"{left} or {right}", one or other


def test_random_expressions_come_to_what_they_were_built_to_be() -> None:
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    for _ in range(300):
        text, value = _random_expression(rng, 5)
        assert holds(text) is value, text


def test_garbage_is_refused_and_crashes_nothing() -> None:
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    pieces: list[Any] = [
        "Name",
        "Tags",
        "==",
        "!=",
        " ",
        "(",
        ")",
        "not",
        "in",
        "is",
        "empty",
        '"',
        "`",
        "[",
        "]",
        ".",
        "\\",
    ]
    pieces += ["matches", "80", "-", "\x00", "é", "Meta", "/", "and", "or", "\n", "contains"]
    for _ in range(3000):
        text = "".join(rng.choice(pieces) + rng.choice(["", " "]) for _ in range(rng.randrange(12)))
        column = 1
        try:
            compiled(text, Row)(Row())
        except InvalidArgument as error:
            column = int(str(error.details["column"]))
        assert 1 <= column <= len(text) + 1, text
