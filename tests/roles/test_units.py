"""Every service of a role is held to a figure of what it may do."""

from __future__ import annotations

import ast
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent


def test_every_unit_has_a_figure() -> None:
    tree = ast.parse((PROJECT / "molecule/conftest.py").read_text())
    (table,) = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXPOSURE"
    ]
    units = {path.name.removesuffix(".service.j2") for path in PROJECT.glob("roles/*/templates/*.service.j2")}
    assert ast.literal_eval(table).keys() == units
