"""Which part of a card each model gets, whether that is enough, and the words for it when it is not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ansible.module_utils.vllm_cache import Split
from ansible.module_utils.vllm_cards import Card
from ansible.module_utils.vllm_limits import why_not
from ansible.module_utils.vllm_memory import CUDA_CONTEXT, NCCL, Batch, Model, Need, gib

UTILIZATION = 0.92  # vLLM's default for --gpu-memory-utilization (vllm/config/cache.py)
SHORTEST = 512  # tokens; a context below this is no suggestion

# Divisions that are suggested to a model that is too large; more than 8 cards are more than one host.
WIDER = (Split(2), Split(4), Split(8), Split(8, 2), Split(8, 4))

# Weights of a quantized build, as a part of the 16-bit ones (Qwen2.5-Coder 32B: 31 and 18 of 61 GiB).
BUILDS = {"FP8": 0.52, "AWQ": 0.3}


@dataclass(frozen=True)
class Placed:
    """A model on its cards.

    Attributes:
        model: The model.
        gpus: Its cards on this host.
        split: How it is divided over the cards of all hosts.
        batch: Size of its steps.
        utilization: The part of the cards that the operator gives it, None if it is to be worked out.
        need: What it needs of each card.
    """

    model: Model
    gpus: tuple[int, ...]
    split: Split
    batch: Batch
    utilization: float | None
    need: Need

    @property
    def outside(self) -> int:
        """Bytes of a card that its process takes beside vLLM's part."""
        return int(CUDA_CONTEXT + (NCCL if self.split.tensor > 1 else 0))

    def most(self, memory: int) -> float:
        """The largest part of a card that it can have."""
        return math.floor((memory - self.outside) / memory * 100) / 100


def users(placed: list[Placed], index: int) -> list[Placed]:
    """Models on a card."""
    return [one for one in placed if index in one.gpus]


def smallest(one: Placed, cards: dict[int, Card]) -> Card:
    """The card of a model that decides how much it can have."""
    return min((cards[index] for index in one.gpus), key=lambda card: card.memory or 0)


def alone(one: Placed, placed: list[Placed]) -> bool:
    """Whether a model shares none of its cards."""
    return all(users(placed, index) == [one] for index in one.gpus)


def part(one: Placed, placed: list[Placed], cards: dict[int, Card]) -> float:
    """The part of its cards that a model gets (``gpu_memory_utilization``).

    Alone it gets what vLLM takes by default; beside others no more than it needs, rounded up to a thousandth.
    """
    if one.utilization is not None:
        return one.utilization
    if alone(one, placed):
        return UTILIZATION
    return float(math.ceil(one.need.bytes / (smallest(one, cards).memory or 1) * 1000) / 1000)


def fit_problems(placed: list[Placed], cards: dict[int, Card]) -> Iterator[str]:
    """Models that are too large for their part of a card, and cards that are too small for all their models.

    Args:
        placed: The models. None is on a card of unknown memory.
        cards: The cards by index.
    """
    parts = {one.model.name: part(one, placed, cards) for one in placed}
    large = set()
    for one in placed:
        card = smallest(one, cards)
        fixed = one.utilization is not None or alone(one, placed)
        if fixed and one.need.bytes > parts[one.model.name] * (card.memory or 0):
            large.add(one.model.name)
            yield too_large(one, card, parts[one.model.name])
    for card in cards.values():
        sharing, memory = users(placed, card.index), card.memory or 0
        taken = {one.model.name: int(parts[one.model.name] * memory) + one.outside for one in sharing}
        if not taken or sum(taken.values()) <= memory or large.intersection(taken):
            continue
        if len(sharing) == 1:
            one = sharing[0]
            yield (
                f"{one.model.name}: gpu_memory_utilization is {parts[one.model.name]}, but its process takes "
                f"{gib(one.outside)} of card {card.index} ({card.name}, {gib(memory)}) beside that; set at most "
                f"{one.most(memory)}"
            )
        else:
            yield too_many(sharing, card, taken)


def too_large(one: Placed, card: Card, share: float) -> str:
    """The arithmetic of a model that does not fit on its card, and what would fit."""
    memory = card.memory or 0
    budget = int(share * memory)
    return (
        f"{one.model.name}: does not fit on card {card.index} ({card.name}, {gib(memory)}): "
        f"{one.need.arithmetic(one.model)}, but vLLM may use {share:.0%} of the card, {gib(budget)}. "
        f"{what_fits(one, memory, budget)}"
    )


def what_fits(one: Placed, memory: int, budget: int) -> str:
    """What would fit in place of a model that is too large.

    Args:
        one: The model.
        memory: Bytes of a card.
        budget: Bytes of it that vLLM may use.
    """
    model, need = one.model, one.need
    room = budget - need.weights - need.reserve
    context = rounded(need.cache.largest_context(room, model.parallel, model.context))
    parallel = need.cache.largest_parallel(room, model.context)
    ways = []
    if context >= SHORTEST:
        ways.append(f"context {context} with parallel {model.parallel}")
    if parallel:
        ways.append(f"parallel {parallel} with context {model.context}")
    if budget < need.bytes <= one.most(memory) * memory:
        ways.append(f"gpu_memory_utilization {math.ceil(need.bytes / memory * 100) / 100}")
    begin = "What fits: " if ways else "No context fits. What fits: "
    if not model.quantized:
        ways += [
            f"{build} weights (about {gib(need.weights * size)})"
            for build, size in BUILDS.items()
            if need.bytes - need.weights * (1 - size) <= budget
        ]
    for split in WIDER:
        if split.cards <= one.split.cards or why_not(model.config, split.tensor):
            continue
        if model.on(split, one.batch).bytes <= UTILIZATION * memory:
            stages = f" and pipeline_parallel {split.pipeline}" if split.pipeline > 1 else ""
            ways.append(f"tensor_parallel {split.tensor}{stages} on {split.cards} of these cards")
            break
    return begin + ", or ".join(ways or ["a smaller model"])


def too_many(sharing: list[Placed], card: Card, taken: dict[str, int]) -> str:
    """The arithmetic of models that do not fit on one card together, and what would fit."""
    memory = card.memory or 0
    sums = "; ".join(
        f"{one.model.name}: {one.need.arithmetic(one.model)}, and {gib(one.outside)} beside it" for one in sharing
    )
    left = memory - sum(taken.values())
    ways = [smaller(one, left + taken[one.model.name] - one.outside) for one in sharing]
    return (
        f"card {card.index} ({card.name}, {gib(memory)}) is too small for {' and '.join(taken)} together, which take "
        f"{gib(sum(taken.values()))}: {sums}. Move one of them to another card, or {', or '.join(ways)}"
    )


def smaller(one: Placed, room: int) -> str:
    """What a model could do in the room that its neighbours leave.

    Args:
        one: The model.
        room: Bytes for its part of the card.
    """
    if one.utilization is not None:
        return f"lower gpu_memory_utilization of {one.model.name}"
    free = room - one.need.weights - one.need.reserve
    context = rounded(one.need.cache.largest_context(free, one.model.parallel, one.model.context))
    if context < SHORTEST:
        return f"take a smaller model for {one.model.name}"
    return f"set context of {one.model.name} to {context}"


def rounded(context: int) -> int:
    """A context that one would write: whole thousands of 1024 tokens, or what there is below that."""
    return context // 1024 * 1024 or context
