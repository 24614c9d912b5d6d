"""Imports of the package go down only: from the commands to what serves, to tools, to models and the sandbox."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "local_llm_bridge"
COMMANDS = {"__main__", "cli", "doctor"}
LAYERS = ("base", "models", "sandbox", "tools", "server", "commands")
"""From the lowest; what is in no folder and no command is the lowest."""


def layer_of(module: str) -> str:
    first = module.partition(".")[0]
    return first if first in LAYERS else "commands" if first in COMMANDS else "base"


def imported(file: Path) -> set[str]:
    """The package's modules that a file imports when it runs, also later, but not for types alone."""
    found = set()
    nodes: list[ast.AST] = [ast.parse(file.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE.name:
            _, _, rest = (node.module or "").partition(".")
            found |= {rest} if rest else {alias.name for alias in node.names}
    return found


def test_imports_go_down_only() -> None:
    up = [
        f"{module} imports {other}"
        for file in PACKAGE.rglob("*.py")
        for module in [".".join(file.relative_to(PACKAGE).with_suffix("").parts)]
        for other in imported(file)
        if LAYERS.index(layer_of(other)) > LAYERS.index(layer_of(module))
    ]
    assert up == []
