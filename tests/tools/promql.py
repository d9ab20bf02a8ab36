"""Which metrics and labels a PromQL expression names: selectors with their matchers, and the labels that it groups or
matches by. Reads what dashboards and rules hold; the server itself says whether an expression is valid.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKENS = re.compile(
    r"""
    (?P<blank>\s+|\#[^\n]*)
  | (?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`[^`]*`)
  | (?P<duration>(?:[0-9]+(?:ms|[smhdwy]))+)
  | (?P<number>0x[0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
  | (?P<name>[a-zA-Z_][a-zA-Z0-9_:]*)
  | (?P<sign>=~|!~|==|!=|>=|<=|[-+*/%^=<>(){}\[\],:@])
    """,
    re.VERBOSE,
)
_AGGREGATORS = frozenset(
    "sum min max avg group stddev stdvar count count_values bottomk topk quantile".split()
)
_GROUPINGS = frozenset("by without on ignoring group_left group_right".split())
_WORDS = frozenset("and or unless atan2 bool offset start end inf nan".split())


@dataclass
class Selector:
    """name{label op "value", ...}"""

    name: str
    matchers: list = field(default_factory=list)  # (label, operator, value)

    def __str__(self):
        return self.name + "{" + ",".join(f'{label}{op}"{value}"' for label, op, value in self.matchers) + "}"


@dataclass
class Named:
    """What an expression names."""

    selectors: list
    grouping: set  # labels in by (...), on (...), group_left (...) and the like


def tokens(expression: str) -> list:
    """(kind, text) without blanks and comments; ValueError at what no token starts with."""
    found, place = [], 0
    while place < len(expression):
        match = _TOKENS.match(expression, place)
        if match is None:
            raise ValueError(f"no PromQL at {expression[place : place + 20]!r} in {expression!r}")
        if match.lastgroup != "blank":
            found.append((match.lastgroup, match.group()))
        place = match.end()
    return found


def named(expression: str) -> Named:
    """The selectors and grouping labels of an expression; ValueError when it is not understood."""
    rest = tokens(expression)
    out = Named([], set())
    while rest:
        kind, text = rest.pop(0)
        if text == "{":
            raise ValueError(f"a selector without a metric's name in {expression!r}")
        if kind != "name":
            continue
        follows = rest[0][1] if rest else ""
        lower = text.lower()
        if lower in _GROUPINGS:
            if follows == "(":
                out.grouping.update(_labels(rest, expression))
        elif lower in _WORDS or follows == "(" or (lower in _AGGREGATORS and follows in _GROUPINGS):
            continue
        else:
            out.selectors.append(Selector(text, _matchers(rest, expression) if follows == "{" else []))
    return out


def _labels(rest: list, expression: str) -> list:
    """Takes ( label, ... )."""
    found = []
    rest.pop(0)
    while rest:
        kind, text = rest.pop(0)
        if text == ")":
            return found
        if kind == "name":
            found.append(text)
        elif text != ",":
            break
    raise ValueError(f"labels that do not end in {expression!r}")


def _matchers(rest: list, expression: str) -> list:
    """Takes { label op "value", ... }."""
    found = []
    rest.pop(0)
    while rest and rest[0][1] != "}":
        if rest[0][1] == ",":
            rest.pop(0)
            continue
        if len(rest) < 4 or rest[0][0] != "name" or rest[1][1] not in ("=", "!=", "=~", "!~") or rest[2][0] != "string":
            break
        found.append((rest[0][1], rest[1][1], rest[2][1][1:-1]))
        del rest[:3]
    if not rest or rest.pop(0)[1] != "}":
        raise ValueError(f"matchers that do not end in {expression!r}")
    return found
