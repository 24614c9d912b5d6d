"""The arithmetic of vLLM's memory, held against start-up logs that users have published and against the tiny model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.vllm_cache import Cache, Split, cache_of
from ansible.module_utils.vllm_config import UnknownModel, context_limit, text_config
from ansible.module_utils.vllm_memory import GIB, Batch, Model, batch_of, stored_bytes

ROOT = Path(__file__).resolve().parents[2]
KNOWN = yaml.safe_load((ROOT / "roles/vllm/vars/main/known_models.yml").read_text())["_vllm_known_configs"]
TINY = ROOT / "tests/tiny_model/qwen2-tiny"

# The parts of config.json that decide; the rest of these models' is not needed.
LLAMA_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}
QWEN3_32B = {
    "hidden_size": 5120,
    "num_hidden_layers": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 25600,
    "vocab_size": 151936,
    "torch_dtype": "bfloat16",
}
MINIMAX_M2 = {
    "hidden_size": 3072,
    "num_hidden_layers": 62,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
QWEN3_235B = {
    "hidden_size": 4096,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
}


def config(hub_id: str) -> dict[str, Any]:
    """A configuration from the table of known models."""
    return dict(KNOWN[hub_id]["config"])


def cache(
    settings: Mapping[str, Any], tensor: int = 1, tokens: int = 2048, kv_cache_dtype: str = "auto", block: int = 16
) -> Cache:
    return cache_of(text_config(settings), Split(tensor), tokens, "auto", kv_cache_dtype, block)


# "Available KV cache memory", and the tokens and requests that vLLM says fit into it.
@pytest.mark.parametrize(
    ("layout", "available", "context", "tokens"),
    [
        # https://github.com/vllm-project/vllm/issues/10517
        pytest.param(cache(LLAMA_8B), 3.81, 20000, 31232, id="grouped queries"),
        # https://github.com/vllm-project/vllm/issues/21348
        pytest.param(cache(QWEN3_235B, tensor=4), 8.11, 40960, 178880, id="grouped queries on 4 cards"),
        # https://github.com/eugr/spark-vllm-docker/issues/396
        pytest.param(cache(MINIMAX_M2, tensor=2), 28.74, 196608, 240816, id="MiniMax on 2 cards"),
        # vLLM's log of Qwen3-30B-A3B-Instruct-2507-FP8, which has the same shapes
        pytest.param(
            cache(config("Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8"), kv_cache_dtype="fp8"),
            4.04,
            32768,
            88176,
            id="FP8 cache",
        ),
        # vLLM 0.27.1, a walk-through of Qwen3-32B on two cards without NVLink
        pytest.param(cache(QWEN3_32B, tensor=2), 8.22, 32768, 67296, id="grouped queries on 2 cards"),
        pytest.param(cache(config("zai-org/GLM-4.7-Flash")), 15.03, 40960, 298096, id="latent attention"),
        pytest.param(cache(config("deepseek-ai/DeepSeek-V3"), tensor=8), 41.60, 8192, 635648, id="latent on 8 cards"),
    ],
)
def test_as_many_tokens_fit_into_the_cache_as_vllm_reports(
    layout: Cache, available: float, context: int, tokens: int
) -> None:
    assert layout.capacity(int(available * GIB), context)[0] == pytest.approx(tokens, rel=0.015)


@pytest.mark.parametrize(
    ("layout", "available", "context", "concurrency"),
    [
        # https://github.com/noonghunna/club-3090/issues/652, an NVFP4 build with the same shapes
        pytest.param(
            cache(config("Qwen/Qwen3.6-35B-A3B"), kv_cache_dtype="fp8"), 6.01, 131072, 4.35, id="linear attention"
        ),
        # logs of DeepSeek-V4-Flash on two cards, of which only the context differs; 4096 tokens a step are a guess
        pytest.param(
            cache(config("deepseek-ai/DeepSeek-V4-Flash-0731"), 2, 4096, "fp8"), 32.08, 131072, 9.52, id="compressed"
        ),
        pytest.param(
            cache(config("deepseek-ai/DeepSeek-V4-Flash-0731"), 2, 4096, "fp8"),
            32.08,
            262144,
            8.30,
            id="compressed+",
        ),
    ],
)
def test_as_many_requests_fit_into_the_cache_of_mixed_layers_as_vllm_reports(
    layout: Cache, available: float, context: int, concurrency: float
) -> None:
    assert layout.capacity(int(available * GIB), context)[1] == pytest.approx(concurrency, rel=0.015)


def test_the_longest_context_is_the_one_that_vllm_estimates() -> None:
    # https://github.com/eugr/spark-vllm-docker/issues/396: 23.25 GiB needed, 22.5 GiB there, at most 190272 tokens
    layout = cache(MINIMAX_M2, tensor=2)
    assert layout.needed(196608, 1) / GIB == pytest.approx(23.25, rel=0.001)
    assert layout.largest_context(int(22.5 * GIB), 1, 196608) == pytest.approx(190272, rel=0.001)


def test_a_window_of_attention_saves_memory_and_holds_the_step_under_way() -> None:
    # 12 of 24 layers hold everything, 12 the last 128 tokens and those of two steps.
    layout = cache(config("openai/gpt-oss-20b"))
    assert layout.token_bytes == 12 * 2 * 8 * 64 * 2
    everything = 131072 * 24 * 2 * 8 * 64 * 2
    assert layout.request_bytes(131072) == pytest.approx(everything / 2 + 12 * 2 * 8 * 64 * 2 * (127 + 4096), rel=0.001)


def test_heads_that_are_fewer_than_the_cards_are_held_by_several() -> None:
    assert cache(QWEN3_235B, tensor=8).token_bytes == cache(QWEN3_235B, tensor=4).token_bytes == 94 * 2 * 128 * 2


def test_an_architecture_that_is_not_known_is_not_guessed() -> None:
    with pytest.raises(UnknownModel, match="Mamba"):
        cache({**LLAMA_8B, "hybrid_override_pattern": "M-M*"})


# "Model loading took", per card.
@pytest.mark.parametrize(
    ("hub_id", "tensor", "loaded"),
    [
        ("Qwen/Qwen2.5-Coder-32B-Instruct", 1, 61.0374),  # https://github.com/vllm-project/vllm/issues/16301
        ("Qwen/Qwen2.5-Coder-32B-Instruct-GPTQ-Int4", 1, 18.1436),  # https://github.com/vllm-project/vllm/issues/17821
        ("Qwen/Qwen2.5-Coder-14B-Instruct", 2, 13.9476),  # https://github.com/vllm-project/vllm/issues/13061
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", 4, 14.2474),  # https://github.com/vllm-project/vllm/issues/17469
        ("Qwen/Qwen3.8-27B-FP8", 2, 14.28),  # vllm-project/recipes, models/Qwen/Qwen3.8-27B.yaml
        ("openai/gpt-oss-120b", 1, 64.38),  # https://github.com/vllm-project/vllm/issues/33155
        ("deepseek-ai/DeepSeek-V3", 8, 79.7390),  # a log of vLLM 0.11
    ],
)
def test_weights_take_what_vllm_loads(hub_id: str, tensor: int, loaded: float) -> None:
    model = Model("a", config(hub_id), KNOWN[hub_id]["weights"], context=4096, parallel=1)
    assert model.on(Split(tensor), Batch(2048, 16)).weights / GIB == pytest.approx(loaded, rel=0.02)


# The part of the card less "Available KV cache memory": what vLLM keeps for weights, steps, graphs and libraries.
@pytest.mark.parametrize(
    ("settings", "stored", "tensor", "total", "kept"),
    [
        # vLLM 0.31.0, Llama-3.1-8B-Instruct on an A100 80 GB: 0.92 of 79.25 GiB, 56.21 GiB of them for the cache
        pytest.param(LLAMA_8B, 16060522496, 1, 79.25, 0.92 * 79.25 - 56.21, id="A100"),
        # vLLM 0.27.1, Qwen3-32B: 0.426 of 95.01 GiB, 8.22 GiB of them for the cache
        pytest.param(QWEN3_32B, 65524246528, 2, 95.01, 0.426 * 95.01 - 8.22, id="two RTX PRO 6000"),
    ],
)
def test_vllm_keeps_what_it_reports(
    settings: dict[str, Any], stored: int, tensor: int, total: float, kept: float
) -> None:
    name = "NVIDIA A100-SXM4-80GB" if total < 80 else "NVIDIA RTX PRO 6000"
    need = Model("a", settings, stored, 32768, 1).on(Split(tensor), batch_of(int(total * GIB), name, 32768, None, None))
    assert (need.weights + need.reserve) / GIB == pytest.approx(kept, rel=0.05)


def test_the_tiny_model_needs_what_vllms_cpu_build_reports() -> None:
    """2 x 4 layers x 1 head x 64 numbers x 2 bytes for a token, in blocks of 128 tokens."""
    settings = json.loads((TINY / "config.json").read_text())
    need = Model("tiny", settings, stored_bytes(TINY), 32768, 16).on(Split(), Batch(2048, 16), block_tokens=128)
    assert need.weights == 4238400
    assert need.cache.token_bytes == 1024
    assert need.cached == (16 * 32768 + 128) * 1024
    assert need.cache.capacity(1 * GIB, 32768) == (1048576, 32.0)


def test_quantizing_while_loading_halves_all_but_the_embedding() -> None:
    model = Model("a", QWEN3_32B, 65524246528, 4096, 1, quantization="fp8")
    embeddings = 2 * 2 * 151936 * 5120
    assert model.on(Split(), Batch(2048, 16)).weights == embeddings + (65524246528 - embeddings) // 2


def test_a_stage_of_a_pipeline_has_its_part_of_the_layers() -> None:
    hub_id = "deepseek-ai/DeepSeek-V3"
    model = Model("a", config(hub_id), KNOWN[hub_id]["weights"], 32768, 1)
    half = model.on(Split(8, 2), Batch(8192, 16))
    assert half.weights * 16 == pytest.approx(KNOWN[hub_id]["weights"] * 31 / 30.5, rel=0.001)
    assert half.cache.token_bytes == 31 * 576 * 2


def test_adapters_and_a_draft_model_count_as_weights() -> None:
    alone = Model("a", QWEN3_32B, 65524246528, 4096, 1).on(Split(2), Batch(2048, 16))
    joined = Model("a", QWEN3_32B, 65524246528, 4096, 1, additions=GIB).on(Split(2), Batch(2048, 16))
    assert joined.weights - alone.weights == GIB // 2


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        (None, 32768),
        ({"rope_type": "yarn", "factor": 4.0}, 32768),  # with YaRN max_position_embeddings is what was reached
        ({"type": "linear", "factor": 4.0}, 131072),
    ],
)
def test_the_context_that_a_model_was_made_for(rope: dict[str, Any] | None, limit: int) -> None:
    assert context_limit({"max_position_embeddings": 32768, "rope_scaling": rope}) == limit


@pytest.mark.parametrize(
    ("total", "name", "batch"),
    [
        (24, "NVIDIA GeForce RTX 4090", Batch(2048, 256)),
        (80, "NVIDIA A100-SXM4-80GB", Batch(2048, 256)),
        (80, "NVIDIA H100 80GB HBM3", Batch(8192, 1024)),
        (180, "NVIDIA B200", Batch(16384, 1024)),
    ],
)
def test_a_step_is_as_large_as_vllm_makes_it_on_the_card(total: int, name: str, batch: Batch) -> None:
    assert batch_of(total * GIB, name, 32768, None, None) == batch
    assert batch_of(total * GIB, name, 32768, 1024, 8) == Batch(1024, 8)


def test_weights_are_the_files_that_the_index_names(tmp_path: Path) -> None:
    for name, size in (("model-1.safetensors", 10), ("model-2.safetensors", 20), ("consolidated.safetensors", 30)):
        (tmp_path / name).write_bytes(bytes(size))
    assert stored_bytes(tmp_path) == 30
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    assert stored_bytes(tmp_path) == 20
