"""What neither a model nor a card can do, whatever the model's size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ansible.module_utils.vllm_cache import Split
from ansible.module_utils.vllm_cards import Card
from ansible.module_utils.vllm_config import Config, context_limit, heads, kv_heads, quantization_of, text_config

VOCABULARY_PADDING = 64  # tokens; vLLM's VocabParallelEmbedding rounds up to it

CUDA_13 = (7, 5)  # oldest compute capability that CUDA 13 has code for

# Oldest compute capability of a quantization, from vLLM's classes (get_min_capability).
NEEDS_CAPABILITY = {"mxfp4": (8, 0), "gpt_oss_mxfp4": (8, 0), "experts_int8": (8, 0), "fp_quant": (10, 0)}
# From here on cards compute in FP8; vLLM's Marlin kernels unpack FP8 weights to 16 bits on older ones.
NATIVE_FP8 = (8, 9)


def version(capability: tuple[int, int]) -> str:
    """A compute capability as NVIDIA writes it."""
    return ".".join(map(str, capability))


def division_problems(name: str, config: Config, split: Split, expert_parallel: bool) -> Iterator[str]:
    """What cannot be divided by the number of cards.

    Args:
        name: Name of the model.
        config: The whole configuration.
        split: How the model is to be divided.
        expert_parallel: Whether experts go to the cards whole.
    """
    if split.tensor > 1 and (reason := why_not(config, split.tensor, expert_parallel)):
        works = [str(count) for count in range(1, 17) if not why_not(config, count, expert_parallel)]
        yield (
            f"{name}: tensor_parallel is {split.tensor}, but {reason} cannot be divided by it; choose one of "
            f"{', '.join(works)}"
        )


def why_not(config: Config, tensor: int, expert_parallel: bool = False) -> str:
    """What in a model's layers vLLM cannot divide by a number of cards, empty if there is nothing."""
    text = text_config(config)
    if heads(text) % tensor:
        return f"{heads(text)} attention heads"
    if "kv_lora_rank" not in text and kv_heads(text) % tensor and tensor % kv_heads(text):
        return f"{kv_heads(text)} heads of keys and values"
    if (text.get("linear_num_key_heads") or tensor) % tensor:
        return f"{text['linear_num_key_heads']} heads of linear attention"
    vocabulary = -(-(text.get("vocab_size") or 0) // VOCABULARY_PADDING) * VOCABULARY_PADDING
    if vocabulary % tensor:
        return f"a vocabulary of {vocabulary} tokens"
    # Each card's part of a quantized layer consists of whole blocks.
    quantization = config.get("quantization_config") or text.get("quantization_config") or {}
    block = max(1, *(quantization.get("weight_block_size") or [quantization.get("group_size") or 1]))
    for width in _widths(text, expert_parallel):
        if width % (tensor * block):
            return f"a feed-forward layer {width} wide" + (f", quantized in blocks of {block}," if block > 1 else "")
    return ""


def _widths(text: Config, expert_parallel: bool) -> list[int]:
    """Inner widths of the feed-forward layers of which each card gets a part."""
    dense, expert = text.get("intermediate_size"), text.get("moe_intermediate_size")
    if text.get("num_local_experts") and not expert:  # all layers consist of experts, and this is their width
        dense, expert = None, dense
    return [width for width in (dense, None if expert_parallel else expert) if width]


def context_problems(name: str, config: Config, context: int) -> Iterator[str]:
    """Whether the model was made for the context."""
    limit = context_limit(text_config(config))
    if limit is not None and context > limit:
        yield (
            f"{name}: context is {context} tokens, but the model was made for {limit}; lower it, or widen it as the "
            "model's card says (YaRN: rope_parameters and max_position_embeddings in hf_overrides)"
        )


def card_problems(
    model: dict[str, Any], config: Config | None, cards: list[Card], warnings: list[str]
) -> Iterator[str]:
    """What the cards of a model cannot do.

    Args:
        model: Entry of ``vllm_models``.
        config: The whole configuration, None if it is not known.
        cards: Those of the model.
        warnings: Gets what works, but not well.
    """
    name = model["name"]
    quantization = model["quantization"] or quantization_of(config or {})
    for card in cards:
        if card.mig:
            yield (
                f"{name}: card {card.index} ({card.name}) is cut into MIG instances, and models are placed on whole "
                f"cards only; `nvidia-smi -i {card.index} -mig 0` ends that, or choose another card"
            )
        if card.capability is None:
            continue
        found = f"card {card.index} ({card.name}) has compute capability {version(card.capability)}"
        if card.capability < CUDA_13:
            yield f"{name}: {found}; CUDA 13 needs at least {version(CUDA_13)}. Use llama_cpp on this host"
        elif card.capability < NEEDS_CAPABILITY.get(quantization, (0, 0)):
            yield (
                f"{name}: {found}; {quantization} needs at least {version(NEEDS_CAPABILITY[quantization])}. Take an "
                "AWQ or GPTQ build"
            )
        elif "fp8" in quantization and card.capability < NATIVE_FP8:
            warnings.append(
                f"{name}: {found}; cards compute in FP8 from {version(NATIVE_FP8)}, on older ones vLLM only stores "
                "weights in it: that saves memory, not time"
            )
        if card.capability < (8, 0) and model["dtype"] == "bfloat16":
            yield f"{name}: {found}; bfloat16 needs at least 8.0. Set dtype to float16"
        if card.capability < (8, 0) and model["kv_cache_dtype"].startswith("fp8"):
            yield f"{name}: {found}; a KV cache in FP8 needs at least 8.0. Set kv_cache_dtype to auto"


def choice_problems(model: dict[str, Any], split: Split, cards: dict[int, Card]) -> Iterator[str]:
    """Whether the model's cards exist, and are as many as its division needs."""
    name, gpus = model["name"], model["gpus"]
    if unknown := sorted(set(gpus) - set(cards)):
        has = f"cards {', '.join(map(str, cards))}" if cards else "no cards"
        yield f"{name}: gpus has {', '.join(map(str, unknown))}, but this host has {has}; `nvidia-smi -L` lists them"
    if len(set(gpus)) < len(gpus):
        yield f"{name}: gpus is {gpus}; name each card once"
    if not gpus or len(gpus) % split.tensor or split.cards % len(gpus):
        yield (
            f"{name}: gpus has {len(gpus)} cards, but tensor_parallel {split.tensor} x pipeline_parallel "
            f"{split.pipeline} needs {split.cards} on all hosts together, and {split.tensor} or a multiple of it here"
        )
