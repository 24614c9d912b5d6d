"""The tools that the bridge offers: its own, those of YAML files, and their reload."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local_llm_bridge.errors import ConfigError, UnknownToolError
from local_llm_bridge.models.router import same_name
from local_llm_bridge.tools import chat, code_generation, execute_python, list_models, prompt_file

if TYPE_CHECKING:
    from local_llm_bridge.config import Settings
    from local_llm_bridge.tools.prompt_file import PromptFile
    from local_llm_bridge.tools.tool import Tool

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).with_name("prompts")
_PATHS = {"type": "array", "items": {"type": "string"}, "description": "Project files to add, read by the bridge"}
_ANNOTATIONS = {"readOnlyHint": True, "destructiveHint": False, "idempotentHint": False, "openWorldHint": False}


class Toolbox:
    """All tools of one configuration.

    Args:
        settings: which tools there are.

    Raises:
        ConfigError: a tool's file is wrong, or there is no sandbox.
    """

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.tools_dir
        self._rounds = settings.tool_rounds
        self._has_files = settings.files_root is not None
        run_python = None
        if settings.execute_python:
            from local_llm_bridge.sandbox import sandbox  # noqa: PLC0415 - off by default

            run_python = execute_python.tool(sandbox.create(settings.execute_python), settings.execute_python)
        self._max_tokens = settings.max_tokens
        own = (
            list_models.TOOL,
            chat.tool(self._max_tokens.get("chat")),
            code_generation.tool(run_python, self._rounds, self._max_tokens.get("code_generation")),
            run_python,
        )
        self._own = {tool.name: tool for tool in own if tool}
        self._models = {engine.name for engine in settings.engines}
        self._shipped = [prompt_file.read(path) for path in sorted(SHIPPED.glob("*.yml"))]
        self._state = self._stat()
        self._tools = self._load()
        self.listing = self._list()
        """The tools as `tools/list` gives them."""

    def find(self, name: str) -> Tool:
        """Return the tool of this name.

        Raises:
            UnknownToolError: there is none.
        """
        try:
            return self._tools[name]
        except KeyError:
            raise UnknownToolError(f"There is no tool {name[:100]!r}. Known: {', '.join(self._tools)}.") from None

    def __contains__(self, name: object) -> bool:
        """Whether there is a tool of this name."""
        return name in self._tools

    def schema(self, name: str) -> dict[str, Any] | None:
        """Return a tool's schema; None: there is no such tool."""
        tool = self._tools.get(name)
        return tool.schema if tool else None

    def reload(self) -> bool:
        """Read the operator's files again if one has changed; the old tools stay if one is wrong.

        Returns: whether the tools are other ones now.
        """
        try:
            state = self._stat()
            if state == self._state:
                return False
            self._state = state
            self._tools = self._load()
        except ConfigError as error:
            log.error("tools stay as they were: %s", error)  # noqa: TRY400 - the text says it all
            return False
        before, self.listing = self.listing, self._list()
        log.info("tools read again: %s", ", ".join(self._tools))
        return before != self.listing

    def _stat(self) -> dict[str, tuple[int, int]]:
        """Return what tells whether a file has changed."""
        found = {}
        for path in self._files():
            try:
                status = path.stat()
            except OSError:
                continue  # just taken away
            found[path.name] = (status.st_mtime_ns, status.st_size)
        return found

    def _files(self) -> list[Path]:
        if self._folder is None:
            return []
        if not self._folder.is_dir():
            raise ConfigError(f"{self._folder}: is not a folder; the setting tools_dir names it. Make it, or unset it.")
        return sorted((*self._folder.glob("*.yml"), *self._folder.glob("*.yaml")))

    def _load(self) -> dict[str, Tool]:
        files: dict[str, PromptFile] = {file.content.name: file for file in self._shipped}
        for path in self._files():
            file = prompt_file.read(path)
            name = file.content.name
            if name in self._own:
                raise file.wrong("name", f"{name!r} is a tool of the bridge itself; choose another name")
            if name in files and files[name] not in self._shipped:
                raise file.wrong("name", f"{files[name].path} has a tool {name!r}, too")
            if file.content.model and not self._has(file.content.model):
                names = ", ".join(str(model) for model in self._models)
                raise file.wrong("model", f"found {file.content.model!r}; known are {names}")
            file.check()
            files[name] = file
        asking = [*(name for name, tool in self._own.items() if "model" in tool.schema["properties"]), *files]
        if unknown := self._max_tokens.keys() - set(asking):
            raise ConfigError(
                f"max_tokens: found {', '.join(sorted(unknown)):.100}; tools that ask a model are: {', '.join(asking)}"
            )
        grantable = {
            **self._own,
            **{name: file.tool((), 0, self._max_tokens.get(name)) for name, file in files.items()},
        }
        tools = dict(self._own)
        for name, file in files.items():
            granted = []
            for wanted in file.content.tools:
                if wanted not in grantable or wanted == name:
                    others = ", ".join(other for other in grantable if other != name)
                    raise file.wrong("tools", f"found {wanted!r}; the model may be given: {others}")
                # Granted tools come without tools of their own, so that no model asks a model asks a model.
                granted.append(grantable[wanted])
            tools[name] = file.tool(granted, self._rounds, self._max_tokens.get(name))
        return {name: self._with_files(tool) for name, tool in tools.items()}

    def _has(self, model: str) -> bool:
        return None in self._models or any(same_name(model, name) for name in self._models if name)

    def _with_files(self, tool: Tool) -> Tool:
        """Let a tool take the project's files where the bridge may read them."""
        if not self._has_files or not tool.files_into:
            return tool
        required = [
            name for name in tool.schema.get("required", []) if not (tool.files_suffice and name == tool.files_into)
        ]
        properties = {**tool.schema["properties"], "paths": _PATHS}
        return replace(tool, schema={**tool.schema, "properties": properties, "required": required})

    def _list(self) -> list[dict[str, Any]]:
        return [
            {
                "name": tool.name,
                "description": tool.description,
                "inputSchema": tool.schema,
                "annotations": _ANNOTATIONS,
            }
            for tool in self._tools.values()
        ]
