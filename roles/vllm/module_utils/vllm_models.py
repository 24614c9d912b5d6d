"""The entries of ``vllm_models``: what is asked of a model, what is known of it, what is wrong with it by itself."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils import model_server
from ansible.module_utils.vllm_config import BYTES, UnknownModel
from ansible.module_utils.vllm_memory import Model, stored_bytes

DEFAULTS: dict[str, Any] = {
    "gpus": [0],
    "tensor_parallel_size": None,
    "pipeline_parallel_size": 1,
    "enable_expert_parallel": False,
    "parallel": 1,
    "dtype": "auto",
    "quantization": "",
    "kv_cache_dtype": "auto",
    "gpu_memory_utilization": None,
    "max_num_batched_tokens": None,
    "max_num_seqs": None,
    "hf_overrides": {},
    "lora_adapters": [],
    "ray_hosts": [],
    "speculative": {},
    "config": None,
    "weights": 0,
    "args": {},
    "extra_args": {},
}
NUMBERS = (
    "port",
    "context",
    "parallel",
    "weights",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "max_num_batched_tokens",
    "max_num_seqs",
)


def complete(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry with all keys.

    Flags of ``vllm serve`` may be written with dashes or underscores. Those of ``args``, which the table of known
    models gives, yield to the entry, and the entry yields to those of ``extra_args``.

    Raises:
        ValueError: A number is none.
    """
    whole = {**DEFAULTS, **_flags(entry.get("args")), **_flags(entry), **_flags(entry.get("extra_args"))}
    whole["context"] = whole.get("max_model_len", whole["context"])
    if whole["ray_hosts"]:
        whole["pipeline_parallel_size"] = len(whole["ray_hosts"])
    for key in NUMBERS:
        try:
            whole[key] = None if whole[key] is None else int(whole[key])
        except (TypeError, ValueError):
            raise ValueError(f"{whole['name']}: {key} is {whole[key]!r}; it is a whole number") from None
    if whole["gpu_memory_utilization"] is not None:
        whole["gpu_memory_utilization"] = float(whole["gpu_memory_utilization"])
    for key in ("hf_overrides", "speculative"):
        if isinstance(whole[key], str):
            whole[key] = json.loads(whole[key])
    return whole


def _flags(flags: dict[str, Any] | None) -> dict[str, Any]:
    return {key.replace("-", "_"): value for key, value in (flags or {}).items() if value is not None}


def model_problems(model: dict[str, Any]) -> Iterator[str]:
    """What is wrong with one entry by itself."""
    yield from model_server.model_problems(model)
    name, share = model["name"], model["gpu_memory_utilization"]
    if model["dtype"] not in ("auto", *BYTES):
        yield f"{name}: dtype is {model['dtype']!r}; choose auto, {', '.join(BYTES)}"
    if share is not None and not 0 < share <= 1:
        yield f"{name}: gpu_memory_utilization is {share}; it is a part of the card's memory, above 0 and at most 1"


def ray_problems(models: list[dict[str, Any]], address: str) -> Iterator[str]:
    """What is wrong with models that several hosts serve together.

    Args:
        models: All entries of this host.
        address: Where this host listens.
    """
    spread = [model for model in models if model["ray_hosts"]]
    if len(spread) > 1:
        names = ", ".join(model["name"] for model in spread)
        yield f"{names}: each has ray_hosts, but Ray's ports on a host are for one model; spread one of them elsewhere"
    for model in spread:
        name, hosts = model["name"], model["ray_hosts"]
        if len(set(hosts)) < max(2, len(hosts)):
            yield f"{name}: ray_hosts is {', '.join(hosts)}; it has the addresses of at least two hosts, each once"
        if address not in hosts:
            yield f"{name}: vllm_address is {address}, which is not in ray_hosts ({', '.join(hosts)})"
        for host in hosts:
            if not _is_private(host):
                yield (
                    f"{name}: {host} in ray_hosts is not an IPv4 address of a private network (10.0.0.0/8, "
                    "172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10); what Ray and NCCL send is not encrypted"
                )


def _is_private(address: str) -> bool:
    """Whether an address is of RFC 1918 or 6598: not of the internet, and not of this host alone."""
    networks = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in ipaddress.ip_network(network) for network in networks)


def file_problems(name: str, folder: Path) -> Iterator[str]:
    """What is wrong with the files of a model.

    Args:
        name: Name of the model.
        folder: An existing path.
    """
    if not (folder / "config.json").is_file():
        yield (
            f"{name}: {folder} has no config.json, so it is not the folder of a model that vLLM serves. vLLM serves "
            "safetensors, llama.cpp serves GGUF"
        )
        return
    try:
        json.loads((folder / "config.json").read_text())
    except ValueError as error:
        yield f"{name}: {folder / 'config.json'} is not JSON: {error}; fetch it again with model_store"
    index = folder / "model.safetensors.index.json"
    named = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
    if missing := sorted(file for file in named if not (folder / file).is_file()):
        yield f"{name}: {folder} lacks {len(missing)} of {len(named)} files, {missing[0]} first; run model_store again"
    elif not named and not any(folder.glob("*.safetensors")):
        yield f"{name}: {folder} has no *.safetensors; vLLM serves safetensors, llama.cpp serves GGUF"


def config_of(model: dict[str, Any]) -> dict[str, Any] | None:
    """Configuration of a model: from its folder, or what is known of it, with the operator's changes."""
    try:
        config = json.loads((Path(model["path"]) / "config.json").read_text())
    except (OSError, ValueError):
        config = model["config"]
    return {**config, **model["hf_overrides"]} if config else None


def asked(model: dict[str, Any], config: dict[str, Any]) -> Model:
    """An entry as the arithmetic takes it.

    Raises:
        UnknownModel: The size of its weights is not known.
    """
    folder = Path(model["path"])
    stored = stored_bytes(folder) or model["weights"]
    if not stored:
        raise UnknownModel("the size of its weights is not known before its files are there")
    adapters = [stored_bytes(Path(adapter["path"])) for adapter in model["lora_adapters"]]
    draft = model["speculative"].get("model")
    return Model(
        name=model["name"],
        config=config,
        stored=stored,
        context=model["context"],
        parallel=model["parallel"],
        dtype=model["dtype"],
        kv_cache_dtype=model["kv_cache_dtype"],
        quantization=model["quantization"],
        # vLLM keeps a place of the largest size for each adapter.
        additions=len(adapters) * max(adapters, default=0) + (stored_bytes(Path(draft)) if draft else 0),
    )
