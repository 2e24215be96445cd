r"""Whether an answer says the same as the right one, however it is written: texts, numbers, expressions.

A number is one literal: `8`, `8.`, `+8`, `.5`, `1,000`, `1 000`, `5e-1`, `1/2`, `\frac{1}{2}`, `50%`, `$8`, `8 apples`, `**8**`. A sum, a
list or several numbers are none, so that neither a copied problem nor a list of guesses is right.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any

Number = Decimal | Fraction

MAX_CHARS = 1000
"""Of a number."""
MAX_EXPRESSION = 200
"""Characters of an expression that is compared algebraically."""
_WIDE = Context(prec=2 * MAX_CHARS, Emax=MAX_EMAX, Emin=MIN_EMIN)
_ENDS = re.compile(r"^[\s\u200b-\u200f\u2060\ufeff]+|[\s\u200b-\u200f\u2060\ufeff]+$")
_QUOTES = (
    ("```", "```"),
    ("**", "**"),
    ("*", "*"),
    ("__", "__"),
    ("_", "_"),
    ("`", "`"),
    ('"', '"'),
    ("'", "'"),
)
_QUOTES += (("\u201c", "\u201d"), ("\u2018", "\u2019"), ("\u00ab", "\u00bb"))
_MATH = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_BRACKETS = (("(", ")"), ("[", "]"))
_COMMAND = re.compile(r"\\(?:boxed|fbox|text|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}")
_MINUS = re.compile("[\u2010-\u2015\u2212\ufe63\uff0d]")
_THIN = re.compile(r"\\[,;:! ]|[\u00a0\u2009\u202f]")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_LEAD = re.compile(r"(?:.{0,40}\banswer\s*(?:is\s*:?|:|=)|[A-Za-z]?\s*=)\s*", re.IGNORECASE)
_CURRENCY = "\\\\?[$\u20ac\u00a3\u00a5\u20b9]"
_NUMBER = re.compile(
    rf"""(?P<sign> [+-]? (?:\ ?{_CURRENCY}\ ?-?)? ) \ ?
    (?: \\[dt]?frac \s* (?: \{{ (?P<a>-?\d+) \}} \s* \{{ (?P<b>\d+) \}} | (?P<c>\d) \s* (?P<d>\d) )
      | (?: (?P<whole>\d+) \s+ )? (?P<over>\d+) \ ?/\ ? (?P<under>\d+)
      | (?P<decimal> \d{{1,3}}(?:(?:,\d{{3}})+|(?:[ ]\d{{3}})+|(?:['\u2019]\d{{3}})+|(?:_\d{{3}})+)(?:\.\d*)? | \d+(?:\.\d*)? | \.\d+ )
        (?: e(?P<power>[+-]?\d{{1,9}}) | \ ?(?:\\times|\u00d7)\ ?10\^(?P<times>-?\d|\{{-?\d{{1,9}}\}}) )?
    ) \s* (?P<unit>.*)""",
    re.VERBOSE | re.DOTALL | re.ASCII | re.IGNORECASE,
)
_GROUPS = re.compile("[,_ '\u2019]")
_PERCENT = re.compile(r"\\?%|percent|per cent")
_UNIT = re.compile(
    rf"{_CURRENCY}|\u00b0|\^\{{?\\circ\}}?"
    r"|\u00b0?[a-z\u00b5\u03bc\u2126]{1,4}(?:\^?[23]|[\u00b2\u00b3])?(?:/[a-z]{1,4}(?:\^?[23]|[\u00b2\u00b3])?)?"
    r"|[^\W\d_]{2,20}(?: [^\W\d_]{2,20})?",
    re.IGNORECASE,
)
_CHANGES = """
x y z n i j e k b t pi bn mn mio mil tn or and to not no none minus plus times less more over by than squared cubed
hundred hundreds thousand thousands million millions billion billions trillion dozen dozens half third quarter tenth
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety double twice
"""
"""Words and symbols that change the number before them, or name another one."""
_COSTLY = re.compile(r"!|\*\*|\^\s*(?:\{[^}]*|[^{}]\s*)\^|\^\s*\{?\s*-?\d{3}|\d{40}|[{(\[]{9}")
"""Factorials, towers and large powers, long integers, deep nesting."""
_EQUATION = re.compile(r"\s*[A-Za-z]\s*=([^=]*)")


def same_text(given: str, wanted: str, *, fold_case: bool = False) -> bool:
    """Equal but for runs of whitespace, the Unicode composition, and quotes, brackets and punctuation around it.

    >>> same_text("**Paris**.", "Paris"), same_text("paris", "Paris"), same_text("Paris , Rome", "Paris")
    (True, False, False)
    """
    one, other = (" ".join(unicodedata.normalize("NFC", text).split()) for text in (given, wanted))
    if fold_case:
        one, other = one.casefold(), other.casefold()
    if one == other:
        return bool(one)
    return _bare(one, _QUOTES + _MATH + _BRACKETS, ".,;:!?") in {other, other.rstrip(".")} - {""}


def same_number(given: str, wanted: str) -> bool:
    r"""Equal values; a percentage is read both ways, as its number and as its share.

    >>> same_number("8 apples", "8.0"), same_number("50%", "1/2"), same_number("7, 8", "8"), same_number("3 + 5", "8")
    (True, True, False, False)
    """
    found = numbers(given)
    return any(_equal(one, other) for other in numbers(wanted) for one in found) if found else False


def same_expression(given: str, wanted: str) -> bool:
    r"""Equal in algebra (math-verify); where the right one is a number, only a number is equal to it.

    Meant for a process that can be killed: an expression can take long, and no timeout of its own is set.

    >>> same_expression(r"\frac{\sqrt{8}}{2}", r"\sqrt{2}"), same_expression(r"\sqrt{2}, \sqrt{3}", r"\sqrt{2}")
    (True, False)
    """
    if numbers(wanted):
        return same_number(given, wanted)
    if same_text(given, wanted):
        return True
    answer, right = (_bare(text, _QUOTES + _MATH, ".;:") for text in (given, wanted))
    if equation := _EQUATION.fullmatch(answer):
        answer = equation[1] if "=" not in right else answer
    if (
        not answer
        or len(answer) > MAX_EXPRESSION
        or _COSTLY.search(answer)
        or answer.count("=") > right.count("=")
    ):
        return False
    return _equal_in_algebra(rf"\boxed{{{answer}}}", rf"\boxed{{{right}}}", "no_fallback")


def found_equal(text: str, wanted: str) -> bool:
    """Whether what math-verify finds last in a text is equal to the right answer: LaTeX, sets, intervals, expressions."""
    return _equal_in_algebra(text, f"${wanted}$", "first_match", expressions=True)


@lru_cache(maxsize=1 << 14)
def numbers(text: str) -> tuple[Number, ...]:
    r"""The readings of one literal number: none for any other text, two for a percentage.

    >>> numbers("+1,000.50"), numbers(r"\boxed{50\%}."), numbers("08 / 2"), numbers("1 2")
    ((Decimal('1000.50'),), (Decimal('50'), Decimal('0.50')), (Fraction(4, 1),), ())
    """
    if len(text) > MAX_CHARS:
        return ()
    if not text.isascii():
        text = "".join(map(_narrow, text))
    text = _THIN.sub("", _MINUS.sub("-", text)).replace("{,}", ",")
    text = _VULGAR.sub(lambda match: " " + _fraction_of(match[0]), text)
    text = _LEAD.sub("", _bare(text, _QUOTES + _MATH + _BRACKETS, ".,;:"), count=1)
    match = _NUMBER.fullmatch(_bare(text, _QUOTES + _MATH + _BRACKETS, ".,;:"))
    value = _value(match) if match else None
    if match is None or value is None:
        return ()
    unit = match["unit"]
    if _PERCENT.fullmatch(unit):
        share = value / 100 if isinstance(value, Fraction) else value.scaleb(-2, _WIDE)
        return value, share
    return (value,) if not unit or _is_unit(unit) else ()


def _value(match: re.Match[str]) -> Number | None:
    sign = "-" if match["sign"].count("-") == 1 else ""
    if match["sign"].count("-") > 1:
        return None
    if match["decimal"]:
        power = (match["power"] or match["times"] or "0").strip("{}")
        return Decimal(f"{sign}{_GROUPS.sub('', match['decimal'])}e{power}", _WIDE)
    top, bottom = (
        match["a"] or match["c"] or match["over"],
        match["b"] or match["d"] or match["under"],
    )
    if int(bottom) == 0:
        return None
    value = Fraction(int(top), int(bottom)) + int(match["whole"] or 0)
    return -value if sign else value


def _equal(one: Number, other: Number) -> bool:
    if isinstance(one, Decimal) and isinstance(other, Decimal):
        return one == other
    small = all(
        abs(value.adjusted()) < MAX_CHARS for value in (one, other) if isinstance(value, Decimal)
    )
    return small and Fraction(one) == Fraction(other)


def _is_unit(text: str) -> bool:
    words = set(text.lower().split())
    return bool(_UNIT.fullmatch(text)) and text != "M" and not words & set(_CHANGES.split())


def _narrow(character: str) -> str:
    """A digit of any script, or the wide form of an ASCII character, as ASCII; superscripts are no digits."""
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    return chr(ord(character) - 0xFEE0) if "\uff01" <= character <= "\uff5e" else character


def _fraction_of(sign: str) -> str:
    return unicodedata.normalize("NFKC", sign).replace("\u2044", "/")


def _bare(text: str, pairs: tuple[tuple[str, str], ...], trailing: str) -> str:
    """The text without what stands around it, invisible characters and LaTeX's text commands."""
    for _ in range(8):
        shorter = _ENDS.sub("", _COMMAND.sub(r"\1", text)).rstrip(trailing)
        for opening, closing in pairs:
            inner = shorter[len(opening) : -len(closing)]
            if shorter == f"{opening}{inner}{closing}" and _closed(inner, opening, closing):
                shorter = inner
        if shorter == text:
            break
        text = shorter
    return text


def _closed(text: str, opening: str, closing: str) -> bool:
    """Whether brackets in the text close one another, so that a pair around it belongs together."""
    if opening == closing:
        return opening not in text
    depth = 0
    for part in re.findall(f"{re.escape(opening)}|{re.escape(closing)}", text):
        depth += 1 if part == opening else -1
        if depth < 0:
            return False
    return depth == 0


def _equal_in_algebra(given: str, wanted: str, fallback: str, *, expressions: bool = False) -> bool:
    """math-verify's verdict; its own timeouts use signals, which work in main threads only.

    `fallback` is how `wanted` is read where it is no formula; with `expressions`, formulas need no LaTeX.
    """
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    kinds: Any = [LatexExtractionConfig(), *([ExprExtractionConfig()] if expressions else [])]
    right = parse(wanted, kinds, fallback, parsing_timeout=None)  # pyrefly: ignore
    answer = parse(given, kinds, "no_fallback", parsing_timeout=None)  # pyrefly: ignore
    return bool(answer and right) and verify(right, answer, timeout_seconds=None)
