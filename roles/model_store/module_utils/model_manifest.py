"""The manifest: which files belong to which model, where each comes from, and what is wrong with the input as such."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

HUBS = ("huggingface", "modelscope")
# The store's own file in the folder of each model.
STAMP = ".verified.json"


class StoreError(Exception):
    """Something that the operator has to mend; the text says what."""


@dataclass(frozen=True)
class File:
    """One file of one model, as the manifest has it.

    Attributes:
        model: Name of the model.
        path: Path inside the model's folder.
        size: Bytes.
        sha256: Lower-case hex digest.
        final: Where engines read it.
        staged: Where it waits for verification.
        source: ``huggingface``, ``modelscope``, ``controller`` or ``host``.
        origin: URL (hubs) or path of the file at its source.
    """

    model: str
    path: str
    size: int
    sha256: str
    final: Path
    staged: Path
    source: str
    origin: str

    def as_result(self) -> dict[str, Any]:
        """The file as a task's result has it."""
        return {
            "model": self.model,
            "path": self.path,
            "size": self.size,
            "sha256": self.sha256,
            "source": self.source,
            "origin": self.origin,
            "staged": str(self.staged),
        }


def refusals(models: list[dict[str, Any]], endpoints: dict[str, str], has_token: bool) -> Iterator[str]:
    """What is wrong with the input as such."""
    names = [model.get("name") for model in models]
    for name in sorted({str(name) for name in names if names.count(name) > 1}):
        yield f"{name}: two models have this name"
    for model in models:
        yield from malformed(model)
    for hub, url in endpoints.items():
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            yield f"the endpoint of {hub} is {url!r}; it is a URL such as https://hf-mirror.com"
    if has_token and urlsplit(endpoints["huggingface"]).scheme != "https":
        yield f"model_store_hf_token is set, and {endpoints['huggingface']} would carry it in the clear; use https"


def malformed(model: dict[str, Any]) -> Iterator[str]:
    """What is wrong with one entry of ``model_store_models``."""
    name = str(model.get("name", ""))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", name):
        yield f"name {name!r} of a model: use letters, digits, '.', '_' and '-', beginning with a letter or digit"
        return
    source = model.get("source")
    if source in HUBS:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", str(model.get("repository", ""))):
            yield f"{name}: repository is {model.get('repository')!r}; a hub's repository has the form owner/name"
        revision = str(model.get("revision", ""))
        if source == "huggingface" and not re.fullmatch(r"[0-9a-f]{40}", revision):
            yield (
                f"{name}: revision is {revision!r}; it must be a commit of 40 hex digits, because a branch moves on "
                "to other weights. The hub shows commits under 'Files and versions'"
            )
        if source == "modelscope" and (not re.fullmatch(r"[\w.-]+", revision) or revision in ("master", "main")):
            yield f"{name}: revision is {revision!r}; ModelScope needs a tag or commit that does not move"
    elif source in ("controller", "host"):
        if not str(model.get("path", "")).startswith("/"):
            yield f"{name}: path is {model.get('path')!r}; with source {source} it is the absolute path of a folder"
    else:
        yield f"{name}: source is {source!r}; it is one of huggingface, modelscope, controller, host"
    files = model.get("files") or []
    if not files:
        yield f"{name}: files is empty; list each file with path, size (bytes) and sha256"
    seen: set[str] = set()
    for file in files:
        path = str(file.get("path", ""))
        parts = path.split("/")
        if not path or path in seen or path == STAMP or any(part in ("", ".", "..") for part in parts):
            yield f"{name}: file path {path!r} must be relative, stay inside the model's folder and be listed once"
        seen.add(path)
        if not re.fullmatch(r"[0-9a-f]{64}", str(file.get("sha256", ""))):
            yield f"{name}: {path}: sha256 is {file.get('sha256')!r}; it has 64 lower-case hex digits"
        if not re.fullmatch(r"[1-9][0-9]*", str(file.get("size", ""))):
            yield f"{name}: {path}: size is {file.get('size')!r}; it is the number of bytes"


def origin(model: dict[str, Any], path: str, endpoints: dict[str, str]) -> str:
    """URL or path from which a file comes.

    Args:
        model: Entry of ``model_store_models``.
        path: Path of the file inside the model.
        endpoints: Base URL of each hub.
    """
    match model["source"]:
        case "huggingface":
            repository, revision = model["repository"], model["revision"]
            return f"{endpoints['huggingface']}/{repository}/resolve/{revision}/{quote(path)}"
        case "modelscope":
            query = urlencode({"Revision": model["revision"], "FilePath": path})
            return f"{endpoints['modelscope']}/api/v1/models/{model['repository']}/repo?{query}"
        case _:
            return str(Path(model["path"]) / path)
