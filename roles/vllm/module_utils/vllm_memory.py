"""What a model needs of each card: its weights, the KV cache of the asked requests, and what vLLM reserves besides."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ansible.module_utils.vllm_cache import Cache, Split, cache_of
from ansible.module_utils.vllm_config import (
    BYTES,
    Config,
    dtype_bytes,
    dtype_name,
    number,
    quantization_of,
    text_config,
)

GIB = 1 << 30

# Bytes per parameter after vLLM has quantized a 16-bit checkpoint while it loads it (its "online" methods). The
# embedding and the output layer stay as they are.
ONLINE = {
    "fp8": 1.0,
    "fp8_per_tensor": 1.0,
    "fp8_per_block": 1.0,
    "fp8_per_channel": 1.0,
    "int8_per_channel_weight_only": 1.0,
    "mxfp8": 1.03,  # one byte of scale for 32
    "nvfp4_per_token": 0.5625,  # one byte of scale for 16
}

# gpt-oss: vLLM pads the experts for its kernels (64.38 GiB loaded of 60.77: vllm-project/vllm#33155).
MXFP4_PADDING = 1.06


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / GIB:.1f} GiB"


# --- weights ---


def stored_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's safetensors files, 0 if there are none."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
        return sum((folder / name).stat().st_size for name in names if (folder / name).is_file())
    return sum(file.stat().st_size for file in folder.glob("*.safetensors") if not file.name.startswith("consolidated"))


def weight_bytes(config: Config, stored: int, split: Split, dtype: str, quantization: str) -> int:
    """Bytes of the weights on one card.

    Tensor parallelism divides all large matrices, the embedding too. A stage of a pipeline has whole layers; the
    embedding, of the first stage, and the output layer, of the last, are counted as if they were spread over all.

    Args:
        config: The whole configuration.
        stored: Bytes of the checkpoint.
        split: How the model is divided.
        dtype: ``auto`` or that of vLLM's ``--dtype``.
        quantization: As in vLLM's ``--quantization``, empty if it is not set.
    """
    text = text_config(config)
    if quantization_of(config) == "mxfp4":
        stored = int(stored * MXFP4_PADDING)
    elif not quantization_of(config):
        was = BYTES.get(dtype_name(config) or dtype_name(text) or "bfloat16", 2)
        stored = stored * dtype_bytes(dtype) // was
        if quantization in ONLINE:
            embedding = 2 * number(text, "vocab_size") * number(text, "hidden_size")
            embedding *= 1 if config.get("tie_word_embeddings", text.get("tie_word_embeddings")) else 2
            stored = embedding + int((stored - embedding) / 2 * ONLINE[quantization])
    layers = number(text, "num_hidden_layers", "n_layer")
    stage = -(-layers // split.pipeline) / layers
    return int(stored * stage / split.tensor)


# --- what vLLM reserves ---

# vLLM profiles a step and the capture of CUDA graphs when it starts (vllm/v1/worker/gpu_worker.py,
# determine_available_memory), so these cannot be read from its source. They follow start-up logs that users have
# published; tests/roles/test_vllm_memory.py holds them against some of those.
NON_TORCH = int(0.3 * GIB)  # workspaces of cuBLAS and of the attention kernels
CUDA_GRAPHS = int(0.6 * GIB)
ENCODER = 256 << 10  # bytes per token of a step, for the encoder of a model that also sees
# Taken before vLLM's first look at the card, so beside its gpu_memory_utilization.
CUDA_CONTEXT = int(0.5 * GIB)
NCCL = int(0.5 * GIB)  # with tensor parallelism

# Bytes per request and token of the vocabulary: counts of each token for penalties, kept for all requests
# (vllm/v1/worker/gpu/sample/penalties.py), and logits in 16 and in 32 bits.
PENALTIES, LOGITS = 4.125, 6


def reserve_bytes(config: Config, split: Split, batched_tokens: int, requests: int) -> int:
    """Bytes that vLLM sets aside on one card for a step of the model, CUDA graphs and libraries.

    A step is profiled with ``batched_tokens`` tokens; its largest moment is in the feed-forward layer (both halves of
    the gated product, their product, the input and the residual), in the sampler, which comes after it, or in the
    encoder, which comes before.

    Args:
        config: The whole configuration.
        split: How the model is divided.
        batched_tokens: ``--max-num-batched-tokens``.
        requests: ``--max-num-seqs``.
    """
    text = text_config(config)
    width = number(text, "hidden_size", "n_embd")
    step = batched_tokens * 2 * (3 * _feed_forward(text) // split.tensor + 4 * width)
    logits = requests * number(text, "vocab_size")
    encoder = batched_tokens * ENCODER if "vision_config" in config else 0
    return int(NON_TORCH + CUDA_GRAPHS + logits * PENALTIES + max(step, logits * LOGITS, encoder))


def _feed_forward(config: Config) -> int:
    """Inner width of the feed-forward layers that a token passes: one dense layer, or the chosen experts together."""
    dense = config.get("intermediate_size") or 4 * number(config, "hidden_size", "n_embd")
    chosen = config.get("num_experts_per_tok") or 0
    expert = config.get("moe_intermediate_size") or (dense if chosen else 0)
    # Each chosen expert needs its own copy of the input and the output as well.
    return int(max(dense, chosen * max(expert, number(config, "hidden_size", "n_embd"))))


@dataclass(frozen=True)
class Batch:
    """The size of vLLM's steps.

    Attributes:
        tokens: ``--max-num-batched-tokens``.
        requests: ``--max-num-seqs``.
    """

    tokens: int
    requests: int


def batch_of(total: int, name: str, context: int, tokens: int | None, requests: int | None) -> Batch:
    """What is set of a batch, and vLLM's own values for the rest (vllm/engine/arg_utils.py, ``get_batch_defaults``).

    Args:
        total: Memory of the card in bytes, as nvidia-smi shows it.
        name: Name of the card.
        context: ``--max-model-len``.
        tokens: ``--max-num-batched-tokens``, None if it is not set.
        requests: ``--max-num-seqs``, None if it is not set.
    """
    if total >= 160 * GIB:
        defaults = Batch(16384, 1024)
    elif total >= 70 * GIB and "a100" not in name.lower():
        defaults = Batch(8192, 1024)
    else:
        defaults = Batch(2048, 256)
    requests = requests or min(defaults.requests, tokens or defaults.tokens)
    return Batch(tokens or min(defaults.tokens, requests * context), requests)


# --- all of it ---


@dataclass(frozen=True)
class Need:
    """What a model needs of each of its cards.

    Attributes:
        weights: Bytes.
        cache: Layout of the KV cache.
        cached: Bytes of the KV cache for all requests at once.
        reserve: Bytes for a step of the model, CUDA graphs and libraries.
    """

    weights: int
    cache: Cache
    cached: int
    reserve: int

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.weights + self.cached + self.reserve

    def arithmetic(self, model: Model) -> str:
        """The sum for people."""
        requests = f"{model.parallel} requests" if model.parallel > 1 else "1 request"
        return (
            f"{gib(self.weights)} of weights + {gib(self.cached)} of KV cache ({requests} of {model.context} tokens) + "
            f"{gib(self.reserve)} that vLLM reserves = {gib(self.bytes)}"
        )


@dataclass(frozen=True)
class Model:
    """What is asked of a model.

    Attributes:
        name: Its name.
        config: Its whole configuration.
        stored: Bytes of its checkpoint.
        context: Tokens of one request.
        parallel: Requests at once.
        dtype: As in vLLM's ``--dtype``.
        kv_cache_dtype: As in vLLM's ``--kv-cache-dtype``.
        quantization: As in vLLM's ``--quantization``, empty if it is not set.
        additions: Bytes of LoRA adapters and of a draft model, on all cards together.
    """

    name: str
    config: Config
    stored: int
    context: int
    parallel: int
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    quantization: str = ""
    additions: int = 0

    @property
    def quantized(self) -> bool:
        """Whether its weights have fewer than 16 bits."""
        return bool(self.quantization or quantization_of(self.config))

    def on(self, split: Split, batch: Batch, block_tokens: int = 16) -> Need:
        """What it needs of each card.

        Args:
            split: How it is divided.
            batch: Size of a step.
            block_tokens: Tokens of a block of the KV cache.

        Raises:
            UnknownModel: Its configuration does not say enough.
        """
        text = text_config(self.config)
        cache = cache_of(text, split, batch.tokens, self.dtype, self.kv_cache_dtype, block_tokens)
        return Need(
            weights=weight_bytes(self.config, self.stored, split, self.dtype, self.quantization)
            + self.additions // split.cards,
            cache=cache,
            cached=cache.needed(self.context, self.parallel),
            reserve=reserve_bytes(self.config, split, batch.tokens, batch.requests),
        )
