"""Controller's part of the module ``model_store``: checks files that come from here, and shows downloads' progress."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()


def mismatch(file: dict[str, Any]) -> str | None:
    """How a file on the controller differs from the manifest, if it does.

    Args:
        file: One of the files that the module found missing.
    """
    path = Path(file["origin"])
    if not path.is_file():
        return f"{file['model']}: {path} does not exist on the controller; correct path, or files"
    if (size := path.stat().st_size) != file["size"]:
        return f"{file['model']}: {path} has {size} bytes, but the manifest says {file['size']} for {file['path']}"
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != file["sha256"]:
        return f"{file['model']}: {path} has SHA-256 {found}, but the manifest says {file['sha256']} for {file['path']}"
    return None


def amount(size: float) -> str:
    """Bytes for people."""
    return f"{size / 10**9:.1f} GB" if size >= 10**9 else f"{size / 10**6:.1f} MB"


class ActionModule(ActionBase):
    """Runs the module, and what has to happen on the controller before or around it."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the task.

        Args:
            tmp: Unused; Ansible's old temporary folder.
            task_vars: The host's variables.

        Returns:
            The task's result.
        """
        super().run(tmp, task_vars)
        result = self._model_store(task_vars)
        if result.get("failed"):
            return result
        match self._task.args["state"]:
            case "inspected":
                problems = [mismatch(file) for file in result["missing"] if file["source"] == "controller"]
                if found := [problem for problem in problems if problem]:
                    return {"failed": True, "msg": "\n".join(found)}
            case "fetched" if result["changed"] and not self._task.check_mode:
                watched = self._watch(task_vars)
                return watched if watched.get("failed") else {**result, **watched, "changed": True}
        return result

    def _model_store(self, task_vars: dict[str, Any] | None, **args: Any) -> dict[str, Any]:
        result: dict[str, Any] = self._execute_module(
            module_name="model_store", module_args={**self._task.args, **args}, task_vars=task_vars
        )
        return result

    def _watch(self, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Show progress until all downloads have ended; ever less often, up to twice a minute."""
        host = (task_vars or {}).get("inventory_hostname")
        start = then = time.monotonic()
        last: dict[str, int] = {}
        while True:
            result = self._model_store(task_vars, state="watched")
            if result.get("failed"):
                return result
            now = time.monotonic()
            for model, progress in result["progress"].items():
                have, size = progress["have"], progress["size"]
                line = f"{host}: {model} {amount(have)} of {amount(size)}"
                if model in last and now > then:
                    line += f", {amount((have - last[model]) / (now - then))}/s"
                if last.get(model) != size:
                    display.display(line)
                last[model] = have
            if not result["running"]:
                return result
            then = now
            time.sleep(min(30, 2 + (now - start) / 20))
