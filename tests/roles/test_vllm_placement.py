"""Which model gets which cards, and what is said when they do not fit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.vllm_cards import KNOWN, MIB, RESERVED_MIB, Card
from ansible.module_utils.vllm_cpu import place_in_memory
from ansible.module_utils.vllm_memory import GIB
from ansible.module_utils.vllm_models import complete
from ansible.module_utils.vllm_placement import place_on_cards

ROOT = Path(__file__).resolve().parents[2]
MODELS = yaml.safe_load((ROOT / "roles/vllm/vars/main/known_models.yml").read_text())["_vllm_known_configs"]
TINY = ROOT / "tests/tiny_model/qwen2-tiny"

V100, T4, A100, L40S, H100, RTX_4090 = "1db6", "1eb8", "20b2", "26b9", "2330", "2684"
QWEN_32B, QWEN_14B, QWEN_7B = (f"Qwen/Qwen2.5-Coder-{size}-Instruct" for size in ("32B", "14B", "7B"))


def host(*devices: str) -> list[Card]:
    """Cards that are not here: what the table of known cards says of them."""
    cards = []
    for index, device in enumerate(devices):
        name, mib, capability = KNOWN[device]
        cards.append(Card(index, name, (mib - RESERVED_MIB) * MIB, mib * MIB, capability))
    return cards


def entry(hub_id: str, **settings: Any) -> dict[str, Any]:
    """An entry for a model of which only the configuration is there."""
    known = {"config": MODELS[hub_id]["config"], "weights": MODELS[hub_id]["weights"]}
    name = hub_id.split("/")[1].lower()
    whole: dict[str, Any] = complete(
        {"name": name, "path": "/nowhere", "port": 8000, "context": 32768, **known, **settings}
    )
    return whole


def place(cards: list[Card], *entries: dict[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    problems: list[str] = []
    warnings: list[str] = []
    return place_on_cards(list(entries), cards, problems, warnings), problems, warnings


def only(problems: list[str]) -> str:
    assert len(problems) == 1, problems
    return problems[0]


def test_32b_in_16_bits_does_not_fit_on_one_card_of_48_gb() -> None:
    problem = only(place(host(L40S), entry(QWEN_32B))[1])
    for words in (
        "does not fit on card 0 (L40S, 44.4 GiB)",
        "61.0 GiB of weights",
        "8.0 GiB of KV cache (1 request of 32768 tokens)",
        "92% of the card, 40.8 GiB",
        "No context fits. What fits: AWQ weights (about 18.3 GiB), or tensor_parallel 2 on 2 of these cards",
    ):
        assert words in problem


def test_32b_in_16_bits_fits_on_two_cards_of_80_gb() -> None:
    plan, problems, warnings = place(host(H100, H100), entry(QWEN_32B, gpus=[0, 1], parallel=4))
    assert problems == warnings == []
    model = plan["models"]["qwen2.5-coder-32b-instruct"]
    assert model["tensor_parallel"] == 2
    assert model["gpu_memory_utilization"] == 0.92
    assert model["kv_cache_memory_bytes"] is None
    assert model["kv_cache_bytes_per_token"] == 131072
    assert model["concurrency"] > 4
    for row in plan["cards"]:
        share = row["models"][0]
        taken = share["weights_gib"] + share["kv_cache_gib"] + share["reserve_gib"]
        assert taken + row["left_gib"] == pytest.approx(row["memory_gib"], abs=0.05)


def test_what_is_said_to_fit_does_fit() -> None:
    problem = only(place(host(H100), entry(QWEN_32B, parallel=4))[1])
    assert "4 requests of 32768 tokens" in problem
    context = re.search(r"context (\d+) with parallel 4", problem)
    parallel = re.search(r"parallel (\d+) with context 32768", problem)
    assert context
    assert parallel
    assert place(host(H100), entry(QWEN_32B, parallel=4, context=int(context[1])))[1] == []
    assert place(host(H100), entry(QWEN_32B, parallel=int(parallel[1])))[1] == []
    assert place(host(H100), entry(QWEN_32B, parallel=4, context=int(context[1]) + 1024))[1] != []
    assert place(host(H100), entry(QWEN_32B, parallel=int(parallel[1]) + 1))[1] != []
    assert "tensor_parallel 2 on 2 of these cards" in problem
    assert place(host(H100, H100), entry(QWEN_32B, parallel=4, gpus=[0, 1]))[1] == []


def test_a_model_that_is_too_large_for_a_host_is_told_how_many_hosts_it_takes() -> None:
    large = entry("deepseek-ai/DeepSeek-V3", gpus=list(range(8)))
    problem = only(place(host(*[H100] * 8), large)[1])
    assert "tensor_parallel 8 and pipeline_parallel 2 on 16 of these cards" in problem
    both = entry("deepseek-ai/DeepSeek-V3", gpus=list(range(8)), tensor_parallel_size=8, pipeline_parallel_size=2)
    plan, problems, _ = place(host(*[H100] * 8), both)
    assert problems == []
    assert plan["models"]["deepseek-v3"]["pipeline_parallel"] == 2


def test_models_on_one_card_get_what_they_need_and_no_more() -> None:
    plan, problems, _ = place(host(A100), entry(QWEN_14B, parallel=2), entry(QWEN_7B, parallel=4, port=8001))
    assert problems == []
    parts = [model["gpu_memory_utilization"] for model in plan["models"].values()]
    assert sum(parts) < 0.92
    for model, parallel in zip(plan["models"].values(), (2, 4), strict=True):
        assert parallel <= model["concurrency"] < parallel + 0.1
        assert model["kv_cache_memory_bytes"] > parallel * 32768 * model["kv_cache_bytes_per_token"]
    assert plan["cards"][0]["left_gib"] > 0
    assert len(plan["cards"][0]["models"]) == 2


def test_models_that_are_too_large_for_one_card_together_are_refused() -> None:
    large, small = entry(QWEN_14B), entry(QWEN_7B, parallel=4, port=8001)
    problem = only(place(host(L40S), large, small)[1])
    assert "card 0 (L40S, 44.4 GiB) is too small for qwen2.5-coder-14b-instruct and qwen2.5-coder-7b" in problem
    assert "27.5 GiB of weights" in problem
    assert "Move one of them to another card" in problem
    assert place(host(L40S, L40S), large, {**small, "gpus": [1]})[1] == []


def test_a_context_that_is_said_to_fit_beside_another_model_does_fit() -> None:
    large, small = entry(QWEN_14B, parallel=4), entry(QWEN_7B, port=8001)
    problem = only(place(host(A100), {**large, "parallel": 9}, small)[1])
    context = re.search(r"set context of qwen2.5-coder-14b-instruct to (\d+)", problem)
    assert context
    assert place(host(A100), {**large, "parallel": 9, "context": int(context[1])}, small)[1] == []


def test_the_operators_part_of_a_card_is_respected_and_checked() -> None:
    plan, problems, _ = place(host(L40S), entry(QWEN_7B, gpu_memory_utilization=0.5))
    assert problems == []
    assert plan["models"]["qwen2.5-coder-7b-instruct"]["gpu_memory_utilization"] == 0.5
    assert "may use 30% of the card" in only(place(host(L40S), entry(QWEN_7B, gpu_memory_utilization=0.3))[1])
    assert "set at most 0.98" in only(place(host(L40S), entry(QWEN_7B, gpu_memory_utilization=1.0))[1])


def test_more_of_the_card_is_suggested_where_that_is_enough() -> None:
    large = entry(QWEN_14B, parallel=9, context=8000)
    problem = only(place(host(L40S), large)[1])
    part = re.search(r"gpu_memory_utilization (0\.\d+)", problem)
    assert part
    assert place(host(L40S), {**large, "gpu_memory_utilization": float(part[1])})[1] == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gpus": [0, 2]}, "gpus has 2, but this host has cards 0, 1"),
        ({"gpus": [0, 0]}, "name each card once"),
        ({"gpus": []}, "gpus has 0 cards"),
        ({"gpus": [0, 1], "tensor_parallel_size": 4}, "gpus has 2 cards, but tensor_parallel 4 x pipeline_parallel 1"),
        ({"context": 65536}, "the model was made for 32768"),
        ({"gpus": [0, 1], "extra_args": {"max-model-len": 65536}}, "context is 65536 tokens"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], words: str) -> None:
    assert any(words in problem for problem in place(host(H100, H100), entry(QWEN_7B, **settings))[1])


def test_a_context_that_is_widened_as_the_models_card_says_is_taken() -> None:
    wider = {"max_position_embeddings": 131072, "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}
    for overrides in (wider, json.dumps(wider)):
        model = entry(QWEN_7B, context=131072, extra_args={"hf-overrides": overrides})
        assert place(host(H100), model)[1] == []


@pytest.mark.parametrize(
    ("hub_id", "tensor", "words"),
    [
        (QWEN_7B, 8, "28 attention heads"),
        ("Qwen/Qwen2.5-Coder-7B-Instruct-AWQ", 4, ""),
        ("Qwen/Qwen2.5-Coder-32B-Instruct-AWQ", 16, "40 attention heads"),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8", 2, ""),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8", 4, "768 wide, quantized in blocks of 128"),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", 4, ""),
        ("zai-org/GLM-4.7-Flash", 8, "20 attention heads"),
    ],
)
def test_layers_have_to_be_divisible_by_the_cards(hub_id: str, tensor: int, words: str) -> None:
    problems = place(host(*[H100] * tensor), entry(hub_id, gpus=list(range(tensor))))[1]
    assert problems == [] if not words else words in only(problems)


def test_whole_experts_need_not_be_divisible() -> None:
    settings = {"gpus": [0, 1, 2, 3], "args": {"enable_expert_parallel": True}}
    assert place(host(*[H100] * 4), entry("Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8", **settings))[1] == []


def test_cards_that_cannot_do_it_are_refused_or_pointed_out() -> None:
    small = "Qwen/Qwen2.5-Coder-1.5B-Instruct"
    assert "compute capability 7.0; CUDA 13 needs at least 7.5" in only(place(host(V100), entry(small))[1])
    assert "bfloat16 needs at least 8.0" in only(place(host(T4), entry(small, dtype="bfloat16"))[1])
    assert "a KV cache in FP8" in only(place(host(T4), entry(small, kv_cache_dtype="fp8"))[1])
    assert "mxfp4 needs at least 8.0" in place(host(T4), entry("openai/gpt-oss-20b"))[1][0]
    _, problems, warnings = place(host(A100), entry("Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8"))
    assert problems == []
    assert "that saves memory, not time" in only(warnings)
    cut = Card(0, "NVIDIA A100-SXM4-80GB", 80 * GIB, 80 * GIB, (8, 0), mig=True)
    assert "cut into MIG instances" in only(place([cut], entry(small))[1])


def test_what_is_not_known_is_not_guessed() -> None:
    plan, problems, warnings = place([Card(0, "NVIDIA card 10de:ffff", None, None, None)], entry(QWEN_7B))
    assert problems == []
    assert "the memory of NVIDIA card 10de:ffff is not known until its driver is there" in only(warnings)
    assert plan["cards"] == [
        {"index": 0, "name": "NVIDIA card 10de:ffff", "memory_gib": None, "left_gib": None, "models": []}
    ]
    plan, problems, warnings = place(host(H100), entry(QWEN_7B, config=None))
    assert problems == []
    assert "its config.json is not there yet" in only(warnings)
    assert plan["unknown"] == ["qwen2.5-coder-7b-instruct"]
    assert plan["models"]["qwen2.5-coder-7b-instruct"]["gpu_memory_utilization"] == 0.92
    assert plan["models"]["qwen2.5-coder-7b-instruct"]["kv_cache_tokens"] is None


def test_on_a_cpu_models_share_the_hosts_memory() -> None:
    problems: list[str] = []
    warnings: list[str] = []
    models = [
        complete({"name": name, "path": str(TINY), "port": port, "context": 4096, "parallel": 4})
        for name, port in (("one", 8000), ("two", 8001))
    ]
    plan = place_in_memory(models, 8 * GIB, 1, problems, warnings)
    assert problems == warnings == []
    assert plan["models"]["two"] == {
        "gpus": [],
        "tensor_parallel": 1,
        "pipeline_parallel": 1,
        "gpu_memory_utilization": None,
        "kv_cache_memory_bytes": None,
        "max_num_batched_tokens": 2048,
        "kv_cache_bytes_per_token": 1024,
        "kv_cache_tokens": 1048576,
        "concurrency": 256.0,
    }
    assert plan["cards"][0]["left_gib"] == pytest.approx(2, abs=0.05)
    place_in_memory(models, 4 * GIB, 1, problems, warnings)
    assert problems == []
    assert "take up to 6.0 GiB, and the host has 4.0 GiB of memory" in only(warnings)
    place_in_memory([{**models[0], "parallel": 300}], 8 * GIB, 1, problems, warnings)
    assert "leaves 1.0 GiB. What fits: context 3072 with parallel 300, or parallel 255 with" in only(problems)


def test_on_a_cpu_vllm_takes_most_of_the_memory_if_it_is_not_told_how_much() -> None:
    model = complete({"name": "one", "path": str(TINY), "port": 8000, "context": 4096, "pipeline_parallel_size": 2})
    plan = place_in_memory([model], 10 * GIB, None, [], [])
    assert plan["cards"][0]["models"][0]["kv_cache_gib"] == pytest.approx(7.2, abs=0.01)
    assert plan["models"]["one"]["kv_cache_bytes_per_token"] == 512  # half of the layers
