"""What a model's ``config.json`` says, as vLLM reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]

BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}


class UnknownModel(ValueError):
    """The configuration does not say enough, or is of an architecture that is not known here."""


def text_config(config: Config) -> Config:
    """The part of a configuration that describes the language model; models that also see or hear nest it."""
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(key), dict):
            return {"dtype": dtype_name(config), **config[key]}
    return config


def dtype_name(config: Config) -> str | None:
    """Type of the checkpoint's numbers, None if it is not given."""
    name = config.get("dtype") or config.get("torch_dtype")
    return str(name) if name else None


def dtype_bytes(dtype: str) -> int:
    """Bytes of a number that is not quantized; with ``auto`` vLLM takes 16 bits, for a 32-bit checkpoint too."""
    return 2 if dtype == "auto" else BYTES[dtype]


def number(config: Config, *keys: str) -> int:
    """The first of some keys that has a number above 0.

    Raises:
        UnknownModel: None has.
    """
    for key in keys:
        if isinstance(config.get(key), int) and config[key] > 0:
            return int(config[key])
    raise UnknownModel(f"{keys[0]} is not in its config.json")


def heads(config: Config) -> int:
    """Attention heads."""
    return number(config, "num_attention_heads", "n_head")


def kv_heads(config: Config) -> int:
    """Heads of keys and values: all, a few (grouped queries) or one."""
    return int(config.get("num_key_value_heads") or config.get("num_kv_heads") or heads(config))


def head_dim(config: Config) -> int:
    """Numbers in one head."""
    return int(config.get("head_dim") or number(config, "hidden_size") // heads(config))


def context_limit(config: Config) -> int | None:
    """Tokens that vLLM accepts as context, None if the configuration does not say.

    ``max_position_embeddings`` already contains the factor of YaRN and of Llama 3's scaling; only linear and dynamic
    scaling multiply it (vllm/config/model.py, ``_get_and_verify_max_len``).
    """
    limit = config.get("max_position_embeddings") or config.get("n_positions")
    if not isinstance(limit, int):
        return None
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    multiplied = (rope.get("rope_type") or rope.get("type")) in ("linear", "dynamic")
    if multiplied and config.get("model_type") != "gemma3_text":
        return int(limit * (rope.get("factor") or 1))
    return limit


def layer_kinds(config: Config) -> Counter[str]:
    """How many layers attend to everything (``full``), to a window (``window``) or hold a state (``state``).

    Raises:
        UnknownModel: There are layers of another kind.
    """
    layers = number(config, "num_hidden_layers", "n_layer")
    if "hybrid_override_pattern" in config or "layers_block_type" in config or "ssm_cfg" in config:
        raise UnknownModel("its Mamba layers are not known here")
    if kinds := config.get("layer_types"):
        names = {
            "full_attention": "full",
            "sliding_attention": "window",
            "chunked_attention": "window",
            "linear_attention": "state",
        }
        if unknown := sorted(set(kinds) - set(names)):
            raise UnknownModel(f"layers of the kind {', '.join(unknown)} are not known here")
        shared = config.get("num_kv_shared_layers") or 0  # these read the cache of an earlier layer
        return Counter(names[kind] for kind in kinds[: layers - shared])
    if interval := config.get("full_attention_interval"):  # Qwen3-Next
        return Counter(full=layers // interval, state=layers - layers // interval)
    pattern = config.get("sliding_window_pattern") or {"gemma3_text": 6, "gemma2": 2}.get(config.get("model_type", ""))
    if isinstance(pattern, int) and config.get("sliding_window"):
        return Counter(full=layers // pattern, window=layers - layers // pattern)
    return Counter(full=layers)  # a window that no layer is said to use counts as none: rather too much than too little


def quantization_of(config: Config) -> str:
    """Quantization of a checkpoint, empty if it has none."""
    quantization = config.get("quantization_config") or text_config(config).get("quantization_config") or {}
    return str(quantization.get("quant_method") or "")
