"""Tools without code: a YAML file with a JSON Schema and a Jinja2 template is one."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from local_llm_bridge.errors import BadArgumentsError, ConfigError
from local_llm_bridge.patterns import matcher, patterns_in
from local_llm_bridge.texts import printable, shown
from local_llm_bridge.tools.ask import MODEL_ARGUMENTS, Prompt, ask
from local_llm_bridge.tools.tool import Tool

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import jinja2

    from local_llm_bridge.tools.tool import Context, Result

_Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: _Name
    description: str = Field(min_length=1)
    arguments: dict[str, Any] = {"type": "object", "properties": {}}
    template: str = Field(min_length=1)
    system: str | None = None
    model: str | None = None
    good_at: str | None = None
    temperature: float = Field(default=0.3, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    tools: list[_Name] = []
    files_into: str | None = None


@dataclass(frozen=True)
class PromptFile:
    """One file, read and found good."""

    path: Path
    content: _Content
    lines: Mapping[tuple[str | int, ...], int]
    """Where each key stands."""

    def wrong(self, key: str, text: str) -> ConfigError:
        """Return an error that names the file, the line and the key."""
        return ConfigError(_place(self.path, self.lines, (key,)) + text)

    def tool(self, granted: Sequence[Tool], rounds: int, max_tokens: int | None = None) -> Tool:
        """Return the tool.

        Args:
            granted: those that the model may call while it works on its answer.
            rounds: how often it may.
            max_tokens: longest answer as the operator has set it elsewhere; None: it is not set there.
        """
        content = self.content

        async def run(context: Context, arguments: dict[str, Any]) -> Result:
            prompt = Prompt(
                self._rendered("template", arguments),
                self._rendered("system", arguments) if content.system else None,
                content.temperature,
                max_tokens=3000,
                own_max_tokens=max_tokens or content.max_tokens,
                model=content.model,
                good_at=content.good_at,
            )
            return await ask(context, prompt, arguments, granted, rounds)

        schema = {"additionalProperties": False, **content.arguments}
        return Tool(
            name=content.name,
            description=content.description,
            schema={**schema, "properties": {**schema.get("properties", {}), **MODEL_ARGUMENTS}},
            run=run,
            files_into=content.files_into,
            files_suffice=content.files_into is not None,
        )

    def check(self) -> None:
        """Check what only use would show: the schema and the templates.

        Raises:
            ConfigError: something is wrong.
        """
        import jsonschema  # noqa: PLC0415 - only for the operator's own tools
        from jinja2 import TemplateSyntaxError, meta  # noqa: PLC0415

        schema = self.content.arguments
        try:
            jsonschema.Draft202012Validator.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise self.wrong("arguments", f"is not a JSON Schema: {error.message[:200]}") from None
        self._check_patterns()
        properties = schema.get("properties", {})
        if schema.get("type") != "object" or not isinstance(properties, dict):
            raise self.wrong("arguments", "wanted 'type: object' with properties")
        if taken := properties.keys() & {*MODEL_ARGUMENTS, "paths"}:
            raise self.wrong("arguments", f"{', '.join(sorted(taken))}: every tool has this argument already")
        if self.content.files_into and self.content.files_into not in properties:
            raise self.wrong(
                "files_into", f"found {self.content.files_into!r}; wanted one of the arguments: {', '.join(properties)}"
            )
        for key, source in (("template", self.content.template), ("system", self.content.system or "")):
            try:
                used = meta.find_undeclared_variables(_environment().parse(source))
            except TemplateSyntaxError as error:
                raise self.wrong(key, f"line {error.lineno} of the template: {error.message}") from None
            if unknown := sorted(used - properties.keys()):
                raise self.wrong(key, f"uses {', '.join(unknown)}; arguments are: {', '.join(properties) or 'none'}")

    def _check_patterns(self) -> None:
        if "patternProperties" in str(self.content.arguments):
            raise self.wrong("arguments", "has patternProperties, which the bridge does not take; name the properties")
        try:
            for pattern in patterns_in(self.content.arguments):
                matcher(pattern)
        except ValueError as error:
            raise self.wrong("arguments", f"pattern: {error}") from None

    def _rendered(self, key: str, arguments: dict[str, Any]) -> str:
        from jinja2 import TemplateError  # noqa: PLC0415

        properties: dict[str, Any] = self.content.arguments.get("properties", {})
        values = {name: arguments.get(name, what.get("default")) for name, what in properties.items()}
        try:
            return _template(getattr(self.content, key)).render(values)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise BadArgumentsError(f"The {key} of {self.content.name} cannot be filled in: {error}") from None


def read(path: Path) -> PromptFile:
    """Read one file; `check` has still to be called.

    Raises:
        ConfigError: it cannot be read, or a key is missing, unknown or wrong; the text has file and line.
    """
    import yaml  # noqa: PLC0415

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        reader = loader(path.read_text(encoding="utf-8"))
        node = reader.get_single_node()
        content = reader.construct_document(node) if node else None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(f"{path}: line {line}: is not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError):
        raise ConfigError(f"{path}: line 1: is not valid YAML") from None
    lines = _lines(node) if node else {}
    try:
        return PromptFile(path, _Content.model_validate(content), lines)
    except ValidationError as error:
        raise ConfigError("; ".join(_told(path, lines, item) for item in error.errors())) from None


def _told(path: Path, lines: Mapping[tuple[str | int, ...], int], error: Any) -> str:  # noqa: ANN401 - pydantic's
    location = error["loc"]
    key = ".".join(str(part) for part in location) or "the file"
    place = _place(path, lines, location)
    known = list(_Content.model_fields)
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, known, n=1)
        return f"{place}unknown key; " + (f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}")
    if error["type"] == "missing":
        return f"{place}missing"
    return f"{place}found {shown(error['input'])}; {error['msg'][:1].lower()}{error['msg'][1:]}"


def _place(path: Path, lines: Mapping[tuple[str | int, ...], int], location: tuple[str | int, ...]) -> str:
    line = next((lines[location[:end]] for end in range(len(location), 0, -1) if location[:end] in lines), 1)
    key = printable(".".join(str(part) for part in location))
    return f"{path}: line {line}: {key + ': ' if key else ''}"


def _lines(node: Any) -> dict[tuple[str | int, ...], int]:  # noqa: ANN401 - PyYAML has no types for nodes
    """Return the line of each key of a document."""
    found: dict[tuple[str | int, ...], int] = {}

    def walk(node: Any, location: tuple[str | int, ...]) -> None:  # noqa: ANN401
        if node.id == "mapping":
            for key, value in node.value:
                here = (*location, key.value if key.id == "scalar" else "?")
                found[here] = key.start_mark.line + 1
                walk(value, here)
        elif node.id == "sequence":
            for number, value in enumerate(node.value):
                found[*location, number] = value.start_mark.line + 1
                walk(value, (*location, number))

    walk(node, ())
    return found


@cache
def _environment() -> jinja2.Environment:
    from jinja2 import StrictUndefined  # noqa: PLC0415
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    # Prompts are no HTML: nothing is to be escaped.
    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@cache
def _template(source: str) -> jinja2.Template:
    return _environment().from_string(source)
