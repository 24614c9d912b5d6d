"""The plan of a host without cards, where vLLM's build for CPUs serves from the host's memory."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.vllm_cache import Split
from ansible.module_utils.vllm_config import UnknownModel, text_config
from ansible.module_utils.vllm_fit import UTILIZATION, rounded
from ansible.module_utils.vllm_limits import context_problems, division_problems
from ansible.module_utils.vllm_memory import GIB, Batch, Model, Need, gib
from ansible.module_utils.vllm_models import asked, config_of
from ansible.module_utils.vllm_placement import cache_row, unknown_row

BLOCK, LATENT_BLOCK = 128, 16  # tokens in a block of the KV cache (vllm/platforms/cpu.py)
BATCH = Batch(2048, 128)  # vLLM's defaults (vllm/engine/arg_utils.py)
PROCESS = 2 * GIB  # of a server with a tiny model, whose KV cache has 1 GiB: 2.5 to 2.9 GB were measured with both


def place_in_memory(
    entries: list[dict[str, Any]], memory: int, cache_gib: int | None, problems: list[str], warnings: list[str]
) -> dict[str, Any]:
    """Work out which model gets what of the host's memory.

    Args:
        entries: Complete entries of ``vllm_models``, each in order by itself.
        memory: Bytes of the host.
        cache_gib: Size of each model's KV cache, None if vLLM takes 92% of the memory for all that it needs.
        problems: Gets what cannot work.
        warnings: Gets what could not be checked, or works badly.

    Returns:
        The plan, see RETURN of the module ``vllm_preflight``.
    """
    row: dict[str, Any] = {
        "index": None,
        "name": "memory of the host",
        "memory_gib": round(memory / GIB, 2),
        "models": [],
    }
    plan: dict[str, Any] = {"cards": [row], "models": {}, "unknown": []}
    left = memory
    for entry in entries:
        name, config = entry["name"], config_of(entry)
        split = Split(entry["tensor_parallel_size"] or 1, entry["pipeline_parallel_size"])
        try:
            if config is None:
                raise UnknownModel("its config.json is not there yet")
            problems += division_problems(name, config, split, entry["enable_expert_parallel"])
            problems += context_problems(name, config, entry["context"])
            model = asked(entry, config)
            tokens, requests = entry["max_num_batched_tokens"], entry["max_num_seqs"]
            batch = Batch(tokens or BATCH.tokens, requests or BATCH.requests)
            latent = "kv_lora_rank" in text_config(config)
            need = model.on(split, batch, LATENT_BLOCK if latent else BLOCK)
        except UnknownModel as error:
            plan["unknown"].append(name)
            plan["models"][name] = unknown_row(split, [], None)
            warnings.append(f"{name}: whether it fits was not checked: {error}")
            continue
        left_by_vllm = max(0, int(UTILIZATION * memory) - need.weights - PROCESS)
        room = left_by_vllm if cache_gib is None else cache_gib * GIB
        if need.cached > room:
            problems.append(too_small(model, need, room))
        left -= need.weights + room + PROCESS
        row["models"].append(
            {
                "name": name,
                "weights_gib": round(need.weights / GIB, 2),
                "kv_cache_gib": round(room / GIB, 2),
                "reserve_gib": round(PROCESS / GIB, 2),
            }
        )
        plan["models"][name] = {
            **unknown_row(split, [], None),
            "max_num_batched_tokens": batch.tokens,
            **cache_row(need, room, model),
        }
        if need.weights > memory:
            problems.append(
                f"{name}: the model has {gib(need.weights)}, the host's memory {gib(memory)}; choose a smaller model"
            )
    row["left_gib"] = round(left / GIB, 2)
    if left < 0:
        warnings.append(
            f"the models, their KV caches and processes take up to {gib(memory - left)}, and the host has "
            f"{gib(memory)} of memory; lower VLLM_CPU_KVCACHE_SPACE in vllm_environment, or take models away"
        )
    return plan


def too_small(model: Model, need: Need, room: int) -> str:
    """The arithmetic of a cache that is too small for a model's requests, and what would fit."""
    context = rounded(need.cache.largest_context(room, model.parallel, model.context))
    parallel = need.cache.largest_parallel(room, model.context)
    return (
        f"{model.name}: {model.parallel} x {model.context} tokens need {gib(need.cached)} of KV cache, and "
        f"VLLM_CPU_KVCACHE_SPACE leaves {gib(room)}. What fits: context {context} with parallel {model.parallel}"
        + (f", or parallel {parallel} with context {model.context}" if parallel else "")
    )
