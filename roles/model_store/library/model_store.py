"""Ansible module: the files of models on a host, held against a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.model_checks import obstacles
from ansible.module_utils.model_downloads import (
    RUNNING,
    start_downloads,
    systemctl,
    unit_of,
    unit_state,
    watch_downloads,
)
from ansible.module_utils.model_files import Store
from ansible.module_utils.model_manifest import HUBS, StoreError, refusals

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

State = Literal["inspected", "fetched", "watched", "present", "absent"]


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
        progress: dict[str, Any] = watch_downloads(store.names)
        return progress
    missing = store.missing()
    result: dict[str, Any] = {"changed": False, "missing": [file.as_result() for file in missing]}
    match state:
        case "inspected":
            if problems := list(obstacles(store.path, missing)):
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
