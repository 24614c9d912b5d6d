"""No text in a template is another than it looks like: Jinja reads ``'\\1'`` in ``{% %}`` as a control character.

In ``{{ }}`` of YAML Ansible keeps backslashes as they are; in ``{% %}``, conditions and ``.j2`` files it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import Environment

PROJECT = Path(__file__).resolve().parents[2]
FOLDERS = ("inventories", "molecule", "playbooks", "roles", "tests")
CONDITIONS = {"when", "that", "failed_when", "changed_when", "until"}
MEANT = {"\n", "\t", "\r"}  # what is written with a backslash on purpose

YAML_FILES = [PROJECT / "site.yml", *(file for folder in FOLDERS for file in (PROJECT / folder).rglob("*.yml"))]
TEMPLATES = [file for folder in FOLDERS for file in (PROJECT / folder).rglob("*.j2")]


class Loader(yaml.SafeLoader):
    """Reads Ansible's YAML; what has a tag (``!unsafe``, ``!vault``) is no template."""


Loader.add_multi_constructor("!", lambda *_: None)


def control_characters(template: str, *, escaped: bool) -> list[str]:
    """The strings of a template in which a backslash has become a control character.

    Args:
        template: Jinja.
        escaped: Whether Ansible keeps the backslashes in ``{{ }}``.
    """
    found, in_variable = [], False
    for _, kind, text in Environment(autoescape=True).lexer.tokeniter(template, None):
        if kind in ("variable_begin", "variable_end"):
            in_variable = kind == "variable_begin"
        elif kind == "string" and not (in_variable and escaped):
            read = text[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape")  # as Jinja does it
            if any(ord(character) < ord(" ") and character not in MEANT for character in read):
                found.append(text)
    return found


def templates(value: Any, key: str = "") -> Iterator[str]:
    """All templates of a YAML document; a condition is one without its braces."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from templates(part, str(name))
    elif isinstance(value, list):
        for part in value:
            yield from templates(part, key)
    elif isinstance(value, str):
        yield f"{{% if {value} %}}{{% endif %}}" if key in CONDITIONS and "{{" not in value else value


@pytest.mark.parametrize("file", YAML_FILES, ids=lambda file: str(file.relative_to(PROJECT)))
def test_no_text_of_a_yaml_file_has_become_a_control_character(file: Path) -> None:
    for template in templates(list(yaml.load_all(file.read_text(), Loader))):
        assert control_characters(template, escaped=True) == []


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: str(file.relative_to(PROJECT)))
def test_no_text_of_a_template_has_become_a_control_character(file: Path) -> None:
    assert control_characters(file.read_text(), escaped=False) == []


@pytest.mark.parametrize(
    ("template", "kept"),
    [
        (r"{{ a | regex_replace('(.*)', 'http://\1/v1') }}", True),
        (r"{% set b = a | regex_replace('(.*)', 'http://\1/v1') %}", False),
        (r"{% set b = a | regex_replace('(.*)', 'http://\\1/v1') %}", True),
        (r"{% if a is search('\bword') %}{% endif %}", False),
        (r"{% set b = a | split('\n') %}", True),
    ],
)
def test_what_this_test_finds(template: str, kept: bool) -> None:
    assert (control_characters(template, escaped=True) == []) == kept
