"""How vLLM lays out the KV cache of a model on one card, and how many tokens fit into it.

The arithmetic is vLLM's own (0.32.0: ``vllm/v1/core/kv_cache_utils.py``, ``vllm/v1/kv_cache_interface.py``,
``vllm/platforms/interface.py``), worked out from ``config.json`` instead of from a loaded model.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ansible.module_utils.vllm_config import (
    BYTES,
    Config,
    UnknownModel,
    dtype_bytes,
    head_dim,
    kv_heads,
    layer_kinds,
    number,
)

# Bytes of one state of DeepSeek's sparse attention in the layout "fp8_ds_mla"
# (vllm/model_executor/layers/attention/mla_attention.py, vllm/models/deepseek_v4/attention.py).
SPARSE_STATE, V4_STATE, V4_ALIGNMENT = 656, 584, 576


@dataclass(frozen=True)
class Group:
    """Layers that share a block table.

    Attributes:
        tokens: Tokens in one block.
        window: Tokens that a request holds at most, None if it holds all.
        blocks: Blocks of a request where their number is fixed (recurrent state), else None.
    """

    tokens: int
    window: int | None = None
    blocks: int | None = None

    def of_request(self, context: int) -> int:
        """Blocks of one request that fills its context."""
        if self.blocks is not None:
            return self.blocks
        if self.window is not None and self.window < context:
            return -(-self.window // self.tokens) + 1  # the window need not begin where a block does
        return -(-context // self.tokens) + (self.window is not None)


@dataclass(frozen=True)
class Cache:
    """The KV cache of a model as vLLM divides it on one card: blocks of equal size, drawn by groups of layers.

    Attributes:
        block_bytes: Bytes of a block.
        groups: Groups of layers.
        token_bytes: Bytes by which a request grows with each token.
    """

    block_bytes: int
    groups: tuple[Group, ...]
    token_bytes: int

    def request_bytes(self, context: int) -> int:
        """Bytes of one request that fills its context."""
        return self.block_bytes * sum(group.of_request(context) for group in self.groups)

    def needed(self, context: int, parallel: int) -> int:
        """Bytes for some requests at once, with the one block that vLLM keeps free."""
        return parallel * self.request_bytes(context) + self.block_bytes

    def capacity(self, memory: int, context: int) -> tuple[int, float]:
        """What vLLM reports at its start.

        Args:
            memory: Bytes for the cache.
            context: Longest request in tokens.

        Returns:
            Size of the cache in tokens, and how many requests with full context it holds.
        """
        concurrency = max(0, memory // self.block_bytes) / (self.request_bytes(context) // self.block_bytes)
        return int(concurrency * context), concurrency

    def largest_context(self, memory: int, parallel: int, limit: int) -> int:
        """Longest context that some requests at once can have, in tokens; 0 if there is none."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            if self.needed(middle, parallel) <= memory:
                low = middle
            else:
                high = middle - 1
        return low

    def largest_parallel(self, memory: int, context: int) -> int:
        """How many requests can fill a context at once."""
        return max(0, (memory - self.block_bytes) // self.request_bytes(context))


@dataclass(frozen=True)
class Split:
    """How a model is divided.

    Attributes:
        tensor: Cards that share each layer.
        pipeline: Groups of cards that have different layers.
    """

    tensor: int = 1
    pipeline: int = 1

    @property
    def cards(self) -> int:
        """Cards of all hosts together."""
        return self.tensor * self.pipeline


def cache_value_bytes(dtype: str, kv_cache_dtype: str) -> int:
    """Bytes of one number in the cache."""
    return int(dtype_bytes(dtype)) if kv_cache_dtype in ("auto", "bfloat16", "float16") else 1


def cache_of(
    config: Config, split: Split, batched_tokens: int, dtype: str, kv_cache_dtype: str, block_tokens: int
) -> Cache:
    """How vLLM lays out the KV cache of a model.

    Args:
        config: Of the language model, see :func:`text_config`.
        split: How the model is divided.
        batched_tokens: Tokens of one step (``--max-num-batched-tokens``). Layers with a window hold the tokens of the
            steps under way as well.
        dtype: ``auto`` or that of vLLM's ``--dtype``.
        kv_cache_dtype: As in vLLM's ``--kv-cache-dtype``.
        block_tokens: Tokens in a block of a model with one kind of layers.

    Raises:
        UnknownModel: The configuration is of an architecture that is not known here.
    """
    value = cache_value_bytes(dtype, kv_cache_dtype)
    if "compress_ratios" in config:
        return _compressed_cache(config, split, batched_tokens)
    kinds = Counter({kind: -(-count // split.pipeline) for kind, count in layer_kinds(config).items()})
    if "kv_lora_rank" in config:
        if set(kinds) != {"full"}:
            raise UnknownModel("its mixture of latent and linear attention is not known here")
        layer = _latent_bytes(config, value, kv_cache_dtype)
        return Cache(kinds["full"] * layer * block_tokens, (Group(block_tokens),), kinds["full"] * layer)
    return _grouped_cache(config, kinds, split, batched_tokens, value, block_tokens)


def _latent_bytes(config: Config, value: int, kv_cache_dtype: str) -> int:
    """Bytes per token and layer of DeepSeek's latent attention; each card of a tensor group holds all of it."""
    rank, rope = number(config, "kv_lora_rank"), number(config, "qk_rope_head_dim")
    if "index_topk" not in config:
        return int(rank + rope) * value
    # Sparse attention (DeepSeek-V3.2, GLM-5): an index beside the cache, FP8 with a 4-byte scale for 128 numbers.
    index = number(config, "index_head_dim")
    state = SPARSE_STATE if kv_cache_dtype.startswith("fp8") else (rank + rope) * value
    return int(state + index + index // 128 * 4)


def _compressed_cache(config: Config, split: Split, batched_tokens: int) -> Cache:
    """DeepSeek-V4: a layer keeps one state for 4 or 128 tokens, and the compressors of both keep what is under way.

    The layers with a short window are left out: below 5% of a request of 4096 tokens, and of a longer one less.
    """
    tokens, layers = 256, number(config, "num_hidden_layers")  # tokens: the block size that this attention asks for
    ratios = Counter(config["compress_ratios"][:layers])
    state = -(-64 * V4_STATE // V4_ALIGNMENT) * V4_ALIGNMENT  # a page of 64 states
    index = -(-64 * (number(config, "index_head_dim") + 4) // V4_ALIGNMENT) * V4_ALIGNMENT
    long = -(-2 * V4_STATE // V4_ALIGNMENT) * V4_ALIGNMENT
    block = -(-(ratios[4] * (state + index) + ratios[128] * long) // split.pipeline)
    held = _under_way(split, batched_tokens) + number(config, "sliding_window") - 1
    return Cache(block, (Group(tokens), Group(4, window=held), Group(8, window=held)), block // tokens)


def _grouped_cache(
    config: Config, kinds: Counter[str], split: Split, batched_tokens: int, value: int, block_tokens: int
) -> Cache:
    """Attention with heads of keys and values, alone or beside windows and recurrent states."""
    near = 2 * max(1, kv_heads(config) // split.tensor) * head_dim(config) * value  # bytes per token of one layer
    far = near
    if wide := config.get("global_head_dim"):  # Gemma 4: other heads where a layer attends to everything
        far_heads = config.get("num_global_key_value_heads") or kv_heads(config)
        far = 2 * max(1, far_heads // split.tensor) * wide * value
    if set(kinds) == {"full"}:
        return Cache(kinds["full"] * far * block_tokens, (Group(block_tokens),), kinds["full"] * far)

    if kinds["state"]:
        # vLLM makes the block of attention so long that a state fits into it.
        block_tokens *= -(-_state_bytes(config, split) // (block_tokens * far))
    page = max(near, far) * block_tokens if kinds["window"] else far * block_tokens
    # Every group has as many layers as the rarest kind, or as the commonest if the two are close.
    size = min(count for count in kinds.values() if count)
    if max(kinds.values()) < 1.5 * size:
        size = max(kinds.values())
    groups = [Group(page // far)] * -(-kinds["full"] // size)
    if kinds["window"]:
        held = _under_way(split, batched_tokens) + number(config, "sliding_window", "attention_chunk_size") - 1
        groups += [Group(page // near, window=held)] * -(-kinds["window"] // size)
    groups += [Group(block_tokens, blocks=2)] * -(-kinds["state"] // size)  # two states, for the prefix cache
    return Cache(page * size, tuple(groups), kinds["full"] * far)


def _under_way(split: Split, batched_tokens: int) -> int:
    """Tokens whose step has not ended: one step per stage of a pipeline, and one that is prepared meanwhile."""
    return (split.pipeline + 1) * batched_tokens


def _state_bytes(config: Config, split: Split) -> int:
    """Bytes of the state of one layer with linear attention (Gated DeltaNet: Qwen3-Next, Qwen3.5)."""
    keys = number(config, "linear_num_key_heads") * number(config, "linear_key_head_dim")
    values = number(config, "linear_num_value_heads") * number(config, "linear_value_head_dim")
    convolution = (2 * keys + values) * (number(config, "linear_conv_kernel_dim") - 1) * 2
    recurrent = values * number(config, "linear_key_head_dim") * BYTES[config.get("mamba_ssm_dtype") or "bfloat16"]
    return int(convolution + recurrent) // split.tensor
