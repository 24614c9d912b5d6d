"""Ansible module: places models on cards, and refuses what vLLM could not serve here, before anything is changed."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.vllm_cards import driver_problems, look_for_cards
from ansible.module_utils.vllm_cpu import place_in_memory
from ansible.module_utils.vllm_models import complete, file_problems, model_problems, ray_problems
from ansible.module_utils.vllm_placement import place_on_cards

DOCUMENTATION = r"""
module: vllm_preflight
short_description: Which model gets which cards and how much of them, and what would keep vLLM from serving it
description:
  - Reads the input, the models' C(config.json) and files, the cards, the driver, the host's addresses and listeners.
    Changes nothing.
  - A model whose files are not there yet is refused; in check mode it is worked out from O(models) with C(config) and
    C(weights) instead, which makes a plan of it.
author: local-llm-fleet
options:
  models:
    description:
      - The models, with C(name), C(path), C(port), C(context) (tokens of a request) and C(parallel) (requests of that
        length that have to fit into memory at once).
      - C(gpus), by default the first card. C(tensor_parallel_size) is by default as many; C(pipeline_parallel_size) is
        that of all hosts together.
      - C(dtype), C(quantization), C(kv_cache_dtype), C(gpu_memory_utilization) (worked out if it is not given),
        C(max_num_batched_tokens), C(max_num_seqs), C(enable_expert_parallel), C(hf_overrides), all with vLLM's own
        names and defaults, C(speculative) and C(lora_adapters) (each with C(path)).
      - C(ray_hosts), the addresses of all hosts that serve the model together; each has a part of its layers.
      - C(args) and C(extra_args), further flags of C(vllm serve). Of those that are named above, C(args) counts if the
        entry does not say otherwise, and C(extra_args) in any case.
      - C(config) and C(weights) (bytes), what is known of a model before its files are there.
    type: list
    elements: dict
    required: true
  address:
    description: IP address to listen on.
    type: str
    required: true
  api_key:
    description: The key that clients have to send.
    type: str
    required: true
  device:
    description: What models run on.
    type: str
    choices: [cuda, cpu]
    default: cuda
  minimum_driver:
    description: Oldest NVIDIA driver that this release of vLLM works with; empty if that is not checked.
    type: str
    default: ""
  release:
    description: Name of the release of vLLM, for messages.
    type: str
    required: true
  cpu_kv_cache_gib:
    description: Size of each model's KV cache on O(device=cpu) (C(VLLM_CPU_KVCACHE_SPACE)); null is vLLM's own.
    type: int
  reboot_needed:
    description: Whether the driver works after a restart only, and no model is started before. It is not refused then.
    type: bool
    default: false
"""

RETURN = r"""
plan:
  description: What each card, or the host's memory, holds, and what each model gets.
  returned: success
  type: dict
  contains:
    cards:
      description: Rows with C(index) (null is the host's memory), C(name), C(memory_gib), C(left_gib) and C(models),
        each with C(name), C(weights_gib), C(kv_cache_gib) and C(reserve_gib). Sizes are null where they are unknown.
      type: list
    models:
      description:
        - By name C(gpus), C(tensor_parallel), C(pipeline_parallel), C(gpu_memory_utilization) (null on a CPU),
          C(max_num_batched_tokens), C(kv_cache_bytes_per_token), C(kv_cache_tokens), C(concurrency) (requests with full
          context that the cache holds).
        - C(kv_cache_memory_bytes) is null for a model that has its cards to itself. vLLM measures what is free while it
          starts, and takes what a neighbour allocates at that moment for its own; with this flag it does not measure.
      type: dict
    unknown:
      description: Names of the models whose memory could not be worked out; their sizes in C(models) are null.
      type: list
driver:
  description: Version of the loaded NVIDIA driver, null if there is none.
  returned: success
  type: str
"""

KEY_LENGTH = 20  # characters; less can be guessed

# --- the host ---


def memory_bytes() -> int:
    """Memory of the host."""
    found = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return int(found[1]) * 1024 if found else 0


def listeners(ss: str, port: int) -> Iterator[tuple[str, str, int]]:
    """Who listens on a port.

    Args:
        ss: Path of ss(8).
        port: TCP port.

    Yields:
        Address, name of the process and its id (0 if unknown).
    """
    argv = [ss, "--no-header", "--listening", "--tcp", "--numeric", "--processes", f"sport = :{port}"]
    for line in subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines():  # noqa: S603
        address = line.split()[3].rpartition(":")[0].strip("[]").split("%")[0]
        process = re.search(r'\("([^"]+)",pid=(\d+)', line)
        yield address, process[1] if process else "an unknown process", int(process[2]) if process else 0


def serving_model(pid: int) -> str | None:
    """Name of the model that a process serves as one of this role's units."""
    try:
        found = re.search(r"/vllm@([^/]+)\.service", Path(f"/proc/{pid}/cgroup").read_text())
    except OSError:
        return None
    return found[1] if found else None


def overlap(one: str, other: str) -> bool:
    """Whether two listening addresses get in each other's way."""
    everywhere = ("*", "0.0.0.0", "::")  # noqa: S104 - compared, not bound
    return one == other or one in everywhere or other in everywhere


# --- what can be wrong with the input ---


def common_problems(models: list[dict[str, Any]], address: str, api_key: str) -> Iterator[str]:
    """What is wrong with the input, apart from single models."""
    if len(api_key) < KEY_LENGTH or not re.fullmatch(r"[!-~]+", api_key):
        yield (
            f"vllm_api_key has {len(api_key)} characters; it needs at least {KEY_LENGTH}, ASCII without blanks. "
            "`openssl rand -hex 32` makes one"
        )
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
        with socket.socket(family) as probe:
            probe.bind((address, 0))
    except ValueError:
        yield f"vllm_address is {address!r}; it is an IP address of this host, 127.0.0.1 or 0.0.0.0"
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        yield f"vllm_address is {address}, which this host does not have; `ip address` shows those that it has"
    for key in ("name", "port"):
        values = [model[key] for model in models]
        for value in sorted({value for value in values if values.count(value) > 1}, key=str):
            users = ", ".join(model["name"] for model in models if model[key] == value)
            yield f"vllm_models: {key} {value} is used by more than one model ({users})"


def port_problems(model: dict[str, Any], models: list[dict[str, Any]], address: str, ss: str) -> Iterator[str]:
    """Who has the model's port already."""
    names = {other["name"] for other in models}
    for taken, process, pid in listeners(ss, model["port"]):
        if not overlap(address, taken):
            continue
        owner = serving_model(pid)
        if owner == model["name"] or (owner and owner not in names):
            continue  # itself, or one that this run removes
        who = f"the model {owner}, which has to be moved first" if owner else f"{process} (pid {pid})"
        yield f"{model['name']}: port {model['port']} on {taken} is taken by {who}; stop it, or choose another port"


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "models": {"type": "list", "elements": "dict", "required": True},
            "address": {"type": "str", "required": True},
            "api_key": {"type": "str", "required": True, "no_log": True},
            "device": {"type": "str", "choices": ["cuda", "cpu"], "default": "cuda"},
            "minimum_driver": {"type": "str", "default": ""},
            "release": {"type": "str", "required": True},
            "cpu_kv_cache_gib": {"type": "int"},
            "reboot_needed": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        models = [complete(model) for model in params["models"]]
    except ValueError as error:
        module.fail_json(msg=str(error))
    ss = module.get_bin_path("ss", required=True)
    warnings: list[str] = []
    problems = list(common_problems(models, params["address"], params["api_key"]))
    problems += ray_problems(models, params["address"])
    sound = []
    for model in models:
        own = list(model_problems(model))
        problems += [*own, *port_problems(model, models, params["address"], ss)]
        if Path(model["path"]).exists():
            own += file_problems(model["name"], Path(model["path"]))
            problems += own
        elif module.check_mode:
            warnings.append(f"{model['name']}: {model['path']} is not there yet, so its files were not checked")
        else:
            problems.append(
                f"{model['name']}: {model['path']} does not exist; put it there with model_store, or correct path"
            )
        if not own:
            sound.append(model)
    driver = None
    if params["device"] == "cuda":
        cards, driver = look_for_cards(module.get_bin_path("nvidia-smi"))
        found = list(driver_problems(cards, driver, params["minimum_driver"], params["release"]))
        if cards and (params["reboot_needed"] or (module.check_mode and driver is None)):
            warnings += found  # in check mode the run itself may install it
        else:
            problems += found
        plan = place_on_cards(sound, cards, problems, warnings) if cards else {}
    else:
        plan = place_in_memory(sound, memory_bytes(), params["cpu_kv_cache_gib"], problems, warnings)
    for warning in warnings:
        module.warn(warning)
    if problems:
        module.fail_json(msg="\n".join(problems))
    module.exit_json(changed=False, plan=plan, driver=driver)


if __name__ == "__main__":
    main()
