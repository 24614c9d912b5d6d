"""The store on disk: what is in place and remembered as verified, what is missing, and how it gets there."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from ansible.module_utils.model_checks import digest, host_obstacles, mismatch, size_of
from ansible.module_utils.model_downloads import job_of
from ansible.module_utils.model_manifest import STAMP, File, StoreError, origin

STAGING = ".partial"


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

    def missing(self) -> list[File]:
        """Files that are not, or not rightly, in place."""
        return [file for file in self.files if not self.in_place(file)]

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
                problems += host_obstacles(self.path, file)
                continue
            if not file.staged.exists():
                problems.append(f"{file.model}: {file.path} was not fetched; run the play again without --tags")
            elif difference := mismatch(file, file.staged):
                file.staged.unlink()
                problems.append(
                    f"{difference}. The file from {file.origin} was removed: it was damaged on the way, or the source "
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
