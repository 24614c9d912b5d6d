"""Add values to somebody else's JSON document, remember which, and take exactly those out again."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

Document = dict[str, Any]
Path = tuple[str, ...]
_KINDS = ("container", "item", "value")


class DocumentError(ValueError):
    """A document is not what its reader needs; the text says where and what was found."""


@dataclass(frozen=True)
class Whole:
    """A wanted object that is set and compared as one value, instead of being merged key by key."""

    value: Document


@dataclass(frozen=True)
class Addition:
    """One thing that `merge` put into a document.

    kind is "value" (the key was set), "item" (the value was appended to the list at path) or "container"
    (an empty object or list was made to hold others). had_previous tells that the key had another value before.
    """

    path: Path
    kind: str
    value: Any
    had_previous: bool = False
    previous: Any = None

    def to_json(self) -> Document:
        """Return the form that `from_json` reads."""
        previous = {"previous": self.previous} if self.had_previous else {}
        return {"path": list(self.path), "kind": self.kind, "value": self.value, **previous}

    @classmethod
    def from_json(cls, data: Any) -> Addition:
        """Read what `to_json` wrote.

        Raises:
            DocumentError: data has another shape.
        """
        path = data.get("path") if isinstance(data, dict) else None
        if not (path and isinstance(path, list) and all(isinstance(key, str) for key in path)):
            raise DocumentError(f"expected an addition with a path, found {json.dumps(data)[:80]}")
        if data.get("kind") not in _KINDS or "value" not in data:
            raise DocumentError(f"expected an addition of kind {', '.join(_KINDS)}, found {json.dumps(data)[:80]}")
        return cls(tuple(path), data["kind"], data["value"], "previous" in data, data.get("previous"))


@dataclass(frozen=True)
class Style:
    """How a document is laid out: indentation (None: one line), blanks after separators, a newline at the end."""

    indent: str | None = "  "
    spaced: bool = True
    final_newline: bool = True


def parse(text: str) -> tuple[Document, Style]:
    """Read a JSON object and the layout it is written in.

    Raises:
        DocumentError: the text is not JSON (line and column are named) or not an object.
    """
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise DocumentError(f"invalid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise DocumentError("invalid JSON: nested too deeply") from None
    if not isinstance(document, dict):
        raise DocumentError(f"expected a JSON object, found {_kind_of(document)}")
    indented = re.match(r'\s*\{[ \t]*\r?\n([ \t]*)"', text)
    spaced = bool(indented) or '":' not in text or '": ' in text
    return document, Style(indented.group(1) if indented else None, spaced, text.endswith("\n"))


def render(document: Document, style: Style) -> bytes:
    """Write the document in the given layout, as UTF-8."""
    comma = "," if style.indent is not None or not style.spaced else ", "
    layout: dict[str, Any] = {"indent": style.indent, "separators": (comma, ": " if style.spaced else ":")}
    end = "\n" if style.final_newline else ""
    try:
        return (json.dumps(document, ensure_ascii=False, **layout) + end).encode()
    except UnicodeEncodeError:  # half of a surrogate pair is valid in JSON, but only when it is escaped
        return (json.dumps(document, **layout) + end).encode()


def merge(document: Document, wanted: Document, path: Path = ()) -> list[Addition]:
    """Add what is wanted to the document, in place: objects key by key, lists item by item, the rest as values.

    Returns:
        What was really added or replaced, in order; nothing for what was there already.

    Raises:
        DocumentError: the document has another kind of value where an object, a list or a plain value is wanted.
    """
    additions: list[Addition] = []
    for key, value in wanted.items():
        here = (*path, key)
        if isinstance(value, (dict, list)):
            if key not in document:
                document[key] = type(value)()
                additions.append(Addition(here, "container", type(value)()))
            if not isinstance(document[key], type(value)):
                raise DocumentError(f"{dotted(here)}: expected {_kind_of(value)}, found {_kind_of(document[key])}")
            if isinstance(value, dict):
                additions += merge(document[key], value, here)
            else:
                missing = [item for item in value if not _contains(document[key], item)]
                document[key] += copy.deepcopy(missing)
                additions += [Addition(here, "item", item) for item in missing]
            continue
        whole = isinstance(value, Whole)
        value = value.value if whole else value
        previous = document.get(key)
        if key in document and same(previous, value):
            continue
        if not whole and isinstance(previous, (dict, list)):
            raise DocumentError(f"{dotted(here)}: expected {_kind_of(value)}, found {_kind_of(previous)}")
        additions.append(Addition(here, "value", value, key in document, previous))
        document[key] = copy.deepcopy(value)
    return additions


def unmerge(document: Document, additions: Sequence[Addition]) -> None:
    """Take additions out of the document again, in place; what has been changed since then stays."""
    for addition in reversed(additions):
        *parents, key = addition.path
        parent = lookup(document, parents)
        if not isinstance(parent, dict) or key not in parent:
            continue
        present = parent[key]
        if addition.kind == "item" and isinstance(present, list):
            present[:] = [item for item in present if not same(item, addition.value)]
        elif addition.kind != "item" and same(present, addition.value):
            if addition.had_previous:
                parent[key] = addition.previous
            else:
                del parent[key]


def in_order_of(document: Any, model: Any) -> Any:
    """Return the document with keys and items in the order in which the model has them, new ones at the end."""
    if isinstance(document, dict) and isinstance(model, dict):
        keys = [key for key in model if key in document] + [key for key in document if key not in model]
        return {key: in_order_of(document[key], model.get(key)) for key in keys}
    if isinstance(document, list) and isinstance(model, list) and not same(document, model):
        return [item for item in model if _contains(document, item)] + [
            item for item in document if not _contains(model, item)
        ]
    return document


def lookup(document: Any, path: Sequence[str]) -> Any:
    """Return the value at the path, or None where there is none."""
    for key in path:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def same(one: Any, other: Any) -> bool:
    """Tell whether two values are the same JSON (to Python, True == 1; in JSON they differ)."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def dotted(path: Sequence[str]) -> str:
    """Return the path as people write it."""
    return ".".join(path)


def _contains(items: Sequence[Any], item: Any) -> bool:
    return any(same(item, other) for other in items)


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return kinds.get(type(value), "a number")


def _refuse_constant(name: str) -> None:
    raise DocumentError(f"invalid JSON: {name} is not a JSON value")
