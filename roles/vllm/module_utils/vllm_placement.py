"""The plan of a host with cards: which model gets which, and how much of them."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.vllm_cache import Split
from ansible.module_utils.vllm_cards import Card
from ansible.module_utils.vllm_config import UnknownModel
from ansible.module_utils.vllm_fit import UTILIZATION, Placed, alone, fit_problems, part, smallest, users
from ansible.module_utils.vllm_limits import card_problems, choice_problems, context_problems, division_problems
from ansible.module_utils.vllm_memory import GIB, Model, Need, batch_of
from ansible.module_utils.vllm_models import asked, config_of


def place_on_cards(
    entries: list[dict[str, Any]], cards: list[Card], problems: list[str], warnings: list[str]
) -> dict[str, Any]:
    """Work out which model gets what of which card.

    Args:
        entries: Complete entries of ``vllm_models``, each in order by itself.
        cards: Cards of the host.
        problems: Gets what cannot work.
        warnings: Gets what could not be checked, or works badly.

    Returns:
        The plan, see RETURN of the module ``vllm_preflight``.
    """
    by_index = {card.index: card for card in cards}
    placed: list[Placed] = []
    unknown: dict[str, Any] = {}
    for entry in entries:
        split = Split(entry["tensor_parallel_size"] or max(1, len(entry["gpus"])), entry["pipeline_parallel_size"])
        if found := list(choice_problems(entry, split, by_index)):
            problems += found
            continue
        own = [by_index[index] for index in entry["gpus"]]
        config = config_of(entry)
        problems += card_problems(entry, config, own, warnings)
        try:
            if config is None:
                raise UnknownModel("its config.json is not there yet")
            problems += division_problems(entry["name"], config, split, entry["enable_expert_parallel"])
            problems += context_problems(entry["name"], config, entry["context"])
            if unsized := [card for card in own if card.memory is None]:
                raise UnknownModel(f"the memory of {unsized[0].name} is not known until its driver is there")
            placed.append(_place(entry, asked(entry, config), own, split))
        except UnknownModel as error:
            unknown[entry["name"]] = unknown_row(split, entry["gpus"], entry["gpu_memory_utilization"] or UTILIZATION)
            warnings.append(f"{entry['name']}: whether it fits was not checked: {error}")
    problems += fit_problems(placed, by_index)
    return {
        "cards": [_card_row(card, placed, by_index) for card in cards],
        "models": {**unknown, **{one.model.name: _row(one, placed, by_index) for one in placed}},
        "unknown": list(unknown),
    }


def _place(entry: dict[str, Any], model: Model, own: list[Card], split: Split) -> Placed:
    tokens, requests = entry["max_num_batched_tokens"], entry["max_num_seqs"]
    batch = batch_of(own[0].total or 0, own[0].name, model.context, tokens, requests)
    gpus, share = tuple(entry["gpus"]), entry["gpu_memory_utilization"]
    return Placed(model, gpus, split, batch, share, model.on(split, batch))


def _card_row(card: Card, placed: list[Placed], cards: dict[int, Card]) -> dict[str, Any]:
    row: dict[str, Any] = {"index": card.index, "name": card.name, "memory_gib": None, "left_gib": None, "models": []}
    if card.memory is None:
        return row
    left = card.memory
    for one in users(placed, card.index):
        budget = int(part(one, placed, cards) * card.memory)
        left -= budget + one.outside
        row["models"].append(
            {
                "name": one.model.name,
                "weights_gib": round(one.need.weights / GIB, 2),
                "kv_cache_gib": round((budget - one.need.weights - one.need.reserve) / GIB, 2),
                "reserve_gib": round((one.need.reserve + one.outside) / GIB, 2),
            }
        )
    return {**row, "memory_gib": round(card.memory / GIB, 2), "left_gib": round(left / GIB, 2)}


def _row(one: Placed, placed: list[Placed], cards: dict[int, Card]) -> dict[str, Any]:
    share = part(one, placed, cards)
    cache = int(share * (smallest(one, cards).memory or 0)) - one.need.weights - one.need.reserve
    return {
        **unknown_row(one.split, list(one.gpus), share),
        "kv_cache_memory_bytes": None if alone(one, placed) else one.need.cached,
        "max_num_batched_tokens": one.batch.tokens,
        **cache_row(one.need, cache, one.model),
    }


def unknown_row(split: Split, gpus: list[int], share: float | None) -> dict[str, Any]:
    """A model in the plan whose memory could not be worked out."""
    return {
        "gpus": gpus,
        "tensor_parallel": split.tensor,
        "pipeline_parallel": split.pipeline,
        "gpu_memory_utilization": share,
        "kv_cache_memory_bytes": None,
        "max_num_batched_tokens": None,
        "kv_cache_bytes_per_token": None,
        "kv_cache_tokens": None,
        "concurrency": None,
    }


def cache_row(need: Need, memory: int, model: Model) -> dict[str, Any]:
    """What fits into a model's KV cache, for the plan."""
    tokens, concurrency = need.cache.capacity(memory, model.context)
    return {
        "kv_cache_bytes_per_token": need.cache.token_bytes,
        "kv_cache_tokens": tokens,
        "concurrency": round(concurrency, 2),
    }
