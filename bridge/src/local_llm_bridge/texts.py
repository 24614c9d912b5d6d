"""Showing in an error what somebody else has written."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return a text on one line: characters that cannot be seen are escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shown(value: object) -> str:
    """Return a value as an error shows it: the beginning of a text or number, else what kind of thing it is."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            return f"{value!r:.100}"
        except ValueError:  # a number of thousands of digits
            return "a number that is too long"
    return kind(value)


def kind(value: object) -> str:
    """Return what kind of thing a value is, for where it may be a secret."""
    names = {dict: "a mapping", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")
