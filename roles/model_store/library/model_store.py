"""Ansible module: the files of models on a host, held against a manifest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: model_store
short_description: Model files, held against a manifest of sizes and SHA-256
description:
  - A file appears under its final name only when its size and SHA-256 are those of the manifest. Until then it is
    staged as C(<path>/.partial/<model>.<sha256>), where an interrupted download is continued.
  - What was verified is remembered with size and mtime in C(<path>/<model>/.verified.json), and not read again.
  - The action plugin of the same name checks files on the controller, and shows progress until downloads have ended.
author: local-llm-fleet
options:
  path:
    description: Folder of the store.
    type: path
    required: true
  models:
    description: The models, as in the role's variable C(model_store_models).
    type: list
    elements: dict
    required: true
  hf_endpoint:
    description: Hugging Face hub or a mirror of it.
    type: str
    default: https://huggingface.co
  modelscope_endpoint:
    description: ModelScope hub.
    type: str
    default: https://www.modelscope.cn
  has_token:
    description: Whether a token goes to the Hugging Face endpoint.
    type: bool
    default: false
  state:
    description:
      - V(inspected) says what is missing and refuses what cannot work; changes nothing.
      - V(fetched) starts a download unit for each model of a hub that lacks files.
      - V(watched) says how far these units are, and fails with the words of one that gave up.
      - V(present) verifies what is staged, puts it in place and links files that are already on the host.
      - V(absent) removes the files of the models.
    type: str
    choices: [inspected, fetched, watched, present, absent]
    required: true
"""

HUBS = ("huggingface", "modelscope")
STAMP = ".verified.json"
STAGING = ".partial"
JOBS = Path("/run/model-store")
RUNNING = ("active", "activating", "deactivating")
# The engines' units cannot see these (ProtectHome=, PrivateTmp=), so a link into them would be dead.
HIDDEN_FROM_SERVICES = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - nothing is written there

State = Literal["inspected", "fetched", "watched", "present", "absent"]


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


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def size_of(path: Path) -> int:
    """Size in bytes, 0 if there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def human(size: int) -> str:
    """Bytes for people, with the exact number when it is rounded."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit} ({size} bytes)"
    return f"{size} bytes"


# --- the manifest ---


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


class Store:
    """The store's folder and the models that belong in it."""

    def __init__(self, path: Path, models: list[dict[str, Any]], endpoints: dict[str, str]) -> None:
        """Read the manifest.

        Args:
            path: Folder of the store.
            models: Entries of ``model_store_models``, already known to be well formed.
            endpoints: Base URL of each hub.
        """
        self.path = path
        self.staging = path / STAGING
        self.files = [
            File(
                model=model["name"],
                path=file["path"],
                size=int(file["size"]),
                sha256=file["sha256"],
                final=path / model["name"] / file["path"],
                staged=self.staging / f"{model['name']}.{file['sha256']}",
                source=model["source"],
                origin=origin(model, file["path"], endpoints),
            )
            for model in models
            for file in model["files"]
        ]
        self.names = [model["name"] for model in models]
        self._stamps = {name: self._read_stamp(name) for name in self.names}

    # Remembering what was verified

    def _read_stamp(self, model: str) -> dict[str, list[Any]]:
        try:
            stamp = json.loads((self.path / model / STAMP).read_text())
        except (FileNotFoundError, ValueError):
            return {}  # without a stamp everything is read again, which is always right
        return stamp if isinstance(stamp, dict) else {}

    def _print(self, file: File) -> list[Any]:
        """What a verified file looks like from outside: it is read again when any of this changes."""
        status = file.final.stat()
        return [file.sha256, status.st_size, status.st_mtime_ns]

    def in_place(self, file: File) -> bool:
        """Whether the final file is what the manifest says; reads it only if it is not remembered as verified."""
        if size_of(file.final) != file.size or file.final.is_symlink() != (file.source == "host"):
            return False
        if file.source == "host" and file.final.readlink() != Path(file.origin):
            return False
        return self._stamps[file.model].get(file.path) == self._print(file) or digest(file.final) == file.sha256

    def write_stamps(self, dry_run: bool) -> bool:
        """Remember all final files, which must be in place, as verified.

        Args:
            dry_run: Only say whether there is anything to write.

        Returns:
            Whether that was not yet on record.
        """
        changed = False
        for name in self.names:
            stamp = {file.path: self._print(file) for file in self.files if file.model == name}
            if stamp != self._stamps[name]:
                changed = True
                if not dry_run:
                    new = self.path / name / f"{STAMP}.new"
                    new.write_text(json.dumps(stamp, indent=1) + "\n")
                    new.replace(self.path / name / STAMP)
        return changed

    # What can be known before anything is changed

    def missing(self) -> list[File]:
        """Files that are not, or not rightly, in place."""
        return [file for file in self.files if not self.in_place(file)]

    def free_bytes(self) -> int:
        """Free bytes of the file system on which the store is or will be."""
        folder = self.path
        while not folder.is_dir():
            folder = folder.parent
        status = os.statvfs(folder)
        return status.f_bavail * status.f_frsize

    def needed_bytes(self, missing: list[File]) -> int:
        """Bytes that have yet to be written; what an interrupted download left is not counted twice."""
        return sum(max(0, file.size - size_of(file.staged)) for file in missing if file.source != "host")

    def obstacles(self, missing: list[File]) -> Iterator[str]:
        """Why the missing files cannot be brought in place."""
        for file in missing:
            if file.source == "host":
                yield from self._host_obstacles(file)
        needed, free = self.needed_bytes(missing), self.free_bytes()
        if needed > free:
            yield (
                f"{self.path} is too small: {human(needed)} are needed and {human(free)} are free. "
                "Free some space, or set model_store_path to a larger disk"
            )

    def _host_obstacles(self, file: File) -> Iterator[str]:
        path = Path(file.origin)
        if path.is_relative_to(self.path):
            yield f"{file.model}: {path} is inside the store itself; leave the files where they come from"
        elif any(path.resolve().is_relative_to(hidden) for hidden in HIDDEN_FROM_SERVICES):
            yield f"{file.model}: {path} is in a folder that services cannot see; move it, for example to /srv/models"
        elif not path.is_file():
            yield f"{file.model}: {path} does not exist on this host; copy it there or correct path and files"
        elif path.stat().st_mode & 0o004 == 0 or any(up.stat().st_mode & 0o001 == 0 for up in path.parents):
            yield f"{file.model}: {path} cannot be read by other users; give the file o+r and its folders o+x"
        elif mismatch := self._mismatch(file, path):
            yield mismatch

    @staticmethod
    def _mismatch(file: File, path: Path) -> str | None:
        """How a file differs from the manifest, if it does."""
        if (size := size_of(path)) != file.size:
            return f"{file.model}: {path} has {size} bytes, but the manifest says {file.size} for {file.path}"
        if (found := digest(path)) != file.sha256:
            return f"{file.model}: {path} has SHA-256 {found}, but the manifest says {file.sha256} for {file.path}"
        return None

    # Changes

    def put_in_place(self, missing: list[File]) -> None:
        """Verify staged files and give them their final names; link files of the host.

        Args:
            missing: What :meth:`missing` returned.

        Raises:
            StoreError: Some file is not what the manifest says. Staged ones are removed, so that they are fetched anew.
        """
        problems: list[str] = []
        for file in missing:
            if file.source == "host":
                problems += self._host_obstacles(file)
                continue
            if not file.staged.exists():
                problems.append(f"{file.model}: {file.path} was not fetched; run the play again without --tags")
            elif mismatch := self._mismatch(file, file.staged):
                file.staged.unlink()
                problems.append(
                    f"{mismatch}. The file from {file.origin} was removed: it was damaged on the way, or the source "
                    "holds something else. Run again; if that does not help, correct repository, revision or sha256"
                )
        if problems:
            raise StoreError("\n".join(problems))
        for file in missing:
            self._make_folders(file)
            if file.source == "host":
                link = file.final.with_name(f"{file.final.name}.new")
                link.unlink(missing_ok=True)
                link.symlink_to(file.origin)
                link.replace(file.final)
            else:
                os.chown(file.staged, 0, 0)
                file.staged.chmod(0o644)
                file.staged.replace(file.final)

    def _make_folders(self, file: File) -> None:
        for folder in reversed([folder for folder in file.final.parents if folder.is_relative_to(self.path)]):
            if not folder.is_dir():
                folder.mkdir(mode=0o755)
                folder.chmod(0o755)  # whatever the umask

    def remove_leftovers(self, dry_run: bool) -> bool:
        """Remove what is staged for these models, and their jobs, once all their files are in place.

        Args:
            dry_run: Only say whether there is anything.

        Returns:
            Whether parts of files were removed.
        """
        staged = self.staging.iterdir() if self.staging.is_dir() else ()
        leftovers = [path for path in staged if path.name.rpartition(".")[0] in self.names]
        if not dry_run:
            for path in leftovers:
                path.unlink()
            for name in self.names:
                job_of(name).unlink(missing_ok=True)
        return bool(leftovers)

    def remove(self, dry_run: bool) -> bool:
        """Remove the models' files, staged or final, and the folders that this leaves empty.

        Args:
            dry_run: Only say whether there is anything.

        Returns:
            Whether there was anything to remove.
        """
        paths = [path for file in self.files for path in (file.final, file.staged)]
        paths += [self.path / name / STAMP for name in self.names]
        present = [path for path in paths if path.is_symlink() or path.exists()]
        if dry_run:
            return bool(present)
        for path in present:
            path.unlink()
        folders = {up for file in self.files for up in file.final.parents if up.is_relative_to(self.path)}
        folders.add(self.staging)
        for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
            with contextlib.suppress(OSError):  # not empty: it holds what is not ours
                folder.rmdir()
        return bool(present)


# --- downloads: one unit for each model ---


def systemctl(*args: str) -> str:
    """Output of systemctl.

    Raises:
        StoreError: It failed.
    """
    argv = ["/usr/bin/systemctl", *args]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise StoreError(f"systemctl {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout


def unit_of(model: str) -> str:
    """Name of the unit that downloads a model."""
    return f"model-store@{model}.service"


def unit_state(unit: str) -> dict[str, str]:
    """ActiveState, Result and InvocationID of a unit."""
    shown = systemctl("show", "--property=ActiveState,Result,InvocationID", unit)
    return dict(line.split("=", 1) for line in shown.splitlines())


def job_of(model: str) -> Path:
    """The list of files that the unit of a model downloads. It is there from the start of a download to its end."""
    return JOBS / f"{model}.json"


def start_downloads(missing: list[File]) -> None:
    """Give each model that lacks files its job and start its unit, unless that is running already.

    Args:
        missing: What the store lacks.

    Raises:
        StoreError: A unit cannot be started.
    """
    for model in sorted({file.model for file in missing if file.source in HUBS}):
        if unit_state(unit_of(model))["ActiveState"] in RUNNING:
            continue
        files = [file for file in missing if file.model == model]
        job = [
            {"url": file.origin, "path": str(file.staged), "size": file.size, "token": file.source == "huggingface"}
            for file in files
        ]
        JOBS.mkdir(mode=0o755, exist_ok=True)
        systemctl("daemon-reload")
        job_of(model).write_text(json.dumps(job))
        job_of(model).chmod(0o644)
        systemctl("start", unit_of(model))


def watch_downloads(models: list[str]) -> dict[str, Any]:
    """How far the downloads are.

    Args:
        models: Names.

    Returns:
        ``running`` and, for each model that has a job, ``have`` and ``size`` in bytes.

    Raises:
        StoreError: No unit is running any more and one gave up; with the last words of its journal.
    """
    progress: dict[str, dict[str, int]] = {}
    failures = []
    running = False
    for model in models:
        if not job_of(model).exists():
            continue
        state = unit_state(unit_of(model))
        job = json.loads(job_of(model).read_text())
        have, size = sum(size_of(Path(file["path"])) for file in job), sum(file["size"] for file in job)
        progress[model] = {"have": have, "size": size}
        if state["ActiveState"] in RUNNING:
            running = True
        elif have < size:
            failures.append(f"{model}: {journal(unit_of(model), state['InvocationID'])}")
    if failures and not running:
        raise StoreError("\n".join(failures))
    return {"running": running, "progress": progress}


def journal(unit: str, invocation: str) -> str:
    """The last words of one run of a unit."""
    argv = ["/usr/bin/journalctl", "--output=cat", "--lines=3", f"_SYSTEMD_INVOCATION_ID={invocation}"]
    said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
    return said or f"{unit} failed and said nothing; see journalctl -u {unit}"


# --- the module ---


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


def run(module: AnsibleModule) -> dict[str, Any]:
    """Do what the task asks.

    Returns:
        The task's result.

    Raises:
        StoreError: The operator has to mend something; nothing but staged files was changed.
    """
    params = module.params
    models: list[dict[str, Any]] = params["models"]
    state: State = params["state"]
    endpoints = {
        "huggingface": params["hf_endpoint"].rstrip("/"),
        "modelscope": params["modelscope_endpoint"].rstrip("/"),
    }
    if problems := list(refusals(models, endpoints, params["has_token"])):
        raise StoreError("\n".join(problems))
    store = Store(Path(params["path"]), models, endpoints)
    if state == "absent":
        downloads = [unit for unit in map(unit_of, store.names) if unit_state(unit)["ActiveState"] in RUNNING]
        if downloads and not module.check_mode:
            systemctl("stop", *downloads)
        return {"changed": store.remove(dry_run=module.check_mode) or bool(downloads)}
    if state == "watched":
        return watch_downloads(store.names)
    missing = store.missing()
    result: dict[str, Any] = {"changed": False, "missing": [file.as_result() for file in missing]}
    match state:
        case "inspected":
            if problems := list(store.obstacles(missing)):
                raise StoreError("\n".join(problems))
        case "fetched":
            result["changed"] = any(file.source in HUBS for file in missing)
            if not module.check_mode:
                start_downloads(missing)
        case "present" if missing and module.check_mode:
            result["changed"] = True
        case "present":
            store.put_in_place(missing)
            stamped = store.write_stamps(dry_run=module.check_mode)
            cleaned = store.remove_leftovers(dry_run=module.check_mode)
            result["changed"] = bool(missing) or stamped or cleaned
    return result


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "models": {"type": "list", "elements": "dict", "required": True},
            "hf_endpoint": {"type": "str", "default": "https://huggingface.co"},
            "modelscope_endpoint": {"type": "str", "default": "https://www.modelscope.cn"},
            "has_token": {"type": "bool", "default": False, "no_log": False},
            "state": {
                "type": "str",
                "choices": ["inspected", "fetched", "watched", "present", "absent"],
                "required": True,
            },
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except StoreError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
