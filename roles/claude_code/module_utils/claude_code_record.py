"""What has been put into the files of one developer's Claude Code, and what a run changes there."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ansible.module_utils.home_files import ConfigError
from ansible.module_utils.json_additions import (
    Addition,
    Document,
    DocumentError,
    dotted,
    in_order_of,
    lookup,
    merge,
    same,
    unmerge,
)

if TYPE_CHECKING:
    from ansible.module_utils.home_files import Snapshot

OWN_FOLDER = ".config/local-llm-fleet"
RECORD_VERSION = 1
HIDDEN = "(not shown)"


@dataclass(frozen=True)
class Record:
    """What this module has put into a developer's home: additions by file, and the files and folders it made."""

    additions: dict[str, list[Addition]]
    created: list[str]

    def to_json(self) -> Document:
        """Return the form that `from_json` reads."""
        additions = {file: [addition.to_json() for addition in added] for file, added in self.additions.items()}
        return {"version": RECORD_VERSION, "created": self.created, "additions": additions}

    @classmethod
    def from_json(cls, data: Document) -> Record:
        """Read what `to_json` wrote.

        Raises:
            DocumentError: data is not such a record.
        """
        if data.get("version") != RECORD_VERSION:
            raise DocumentError(f"expected a record of version {RECORD_VERSION}, found {data.get('version')!r}")
        added, created = data.get("additions"), data.get("created")
        if not (
            isinstance(added, dict)
            and all(isinstance(value, list) for value in added.values())
            and isinstance(created, list)
            and all(isinstance(name, str) for name in created)
        ):
            raise DocumentError("expected an object 'additions' and a list 'created'")
        return cls({file: [Addition.from_json(item) for item in items] for file, items in added.items()}, created)


@dataclass(frozen=True)
class Change:
    """A JSON file as it is and as it shall be (document None: no file), with our additions before and after."""

    snapshot: Snapshot
    document: Document | None
    had: list[Addition]
    has: list[Addition]

    @property
    def needed(self) -> bool:
        """Whether the file is not yet as it shall be."""
        return not same(self.snapshot.document, self.document)


def rebase(snapshot: Snapshot, had: list[Addition], wanted: Document, created: bool) -> Change:
    """Replace this module's earlier additions to a file by what is wanted now.

    Args:
        snapshot: the file as it is.
        had: what an earlier run has added to it.
        wanted: what shall be in it besides its other contents.
        created: whether an earlier run made the file, so that it goes when nothing is left in it.

    Raises:
        DocumentError: the file has another kind of value where an object or a list is needed.
        ConfigError: the file has a server of the same name that an earlier run did not add.
    """
    document = copy.deepcopy(snapshot.document or {})
    unmerge(document, had)
    recorded = {addition.path for addition in had}
    for name in wanted.get("mcpServers", {}):
        servers = document.get("mcpServers")
        if not isinstance(servers, dict) or name not in servers:
            continue
        # Without a record (a home that was restored, say), the entry still names the token's file.
        if ("mcpServers", name) not in recorded and OWN_FOLDER not in json.dumps(servers[name]):
            raise ConfigError(
                f"has an MCP server {name!r} of its own; remove it (claude mcp remove --scope user {name}) "
                "or choose another server_name"
            )
        del servers[name]
    has = merge(document, wanted)
    document = in_order_of(document, snapshot.document)
    obsolete = not document and (created or snapshot.document is None)
    return Change(snapshot, None if obsolete else document, had, has)


def described(document: Document | None, additions: list[Addition]) -> str:
    """Return the lines of a diff: what the document has at the places of the additions. Environments are not shown."""
    lines: dict[str, None] = {}  # a set that keeps the order
    for addition in additions:
        present = lookup(document, addition.path)
        if (
            addition.kind == "item"
            and isinstance(present, list)
            and any(same(addition.value, item) for item in present)
        ):
            lines[f"{dotted(addition.path)}: {json.dumps(addition.value)}"] = None
        elif addition.kind == "value" and present is not None:
            shown = HIDDEN if "env" in addition.path else present
            if isinstance(shown, dict) and isinstance(shown.get("env"), dict):
                shown = {**shown, "env": dict.fromkeys(shown["env"], HIDDEN)}
            lines[f"{dotted(addition.path)} = {json.dumps(shown)}"] = None
    return "".join(f"{line}\n" for line in lines)
