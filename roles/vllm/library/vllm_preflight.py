"""Ansible module: places models on cards, and refuses what vLLM could not serve here, before anything is changed."""

from __future__ import annotations

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.model_server import common_problems, memory_bytes, port_problems
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
    problems = list(common_problems("vllm", models, params["address"], params["api_key"]))
    problems += ray_problems(models, params["address"])
    sound = []
    for model in models:
        own = list(model_problems(model))
        problems += [*own, *port_problems("vllm", model, models, params["address"], ss)]
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
