"""Ansible module: refuses models that llama.cpp could not serve on this host, before anything is changed."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.model_server import common_problems, memory_bytes, model_problems, port_problems

DOCUMENTATION = r"""
module: llama_cpp_preflight
short_description: What would keep llama.cpp from serving these models here
description:
  - Reads the input, the headers of the GGUF files, the host's addresses, listeners and memory. Changes nothing.
author: local-llm-fleet
options:
  models:
    description: The models, with C(name), C(path), C(port), C(context) and C(parallel).
    type: list
    elements: dict
    required: true
  address:
    description: IP address to listen on.
    type: str
    required: true
  api_key:
    description: The key that clients have to send.
    type: str
    required: true
"""

# GGUF (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): the types of metadata values.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
LONGEST = 1 << 20  # characters or elements


class NotGguf(ValueError):
    """The file is no GGUF model."""


def _take(stream: IO[bytes], form: str) -> Any:
    size = struct.calcsize(f"<{form}")
    data = stream.read(size)
    if len(data) < size:
        raise NotGguf("the file ends in the middle of its header")
    return struct.unpack(f"<{form}", data)[0]


def _count(stream: IO[bytes]) -> int:
    count = _take(stream, "Q")
    if count > LONGEST:
        raise NotGguf("a length in its header is out of all reason")
    return int(count)


def _string(stream: IO[bytes]) -> str:
    return stream.read(_count(stream)).decode(errors="replace")


def _value(stream: IO[bytes], kind: int) -> Any:
    if kind == STRING:
        return _string(stream)
    if kind == ARRAY:
        element = _take(stream, "I")
        return [_value(stream, element) for _ in range(_count(stream))]
    if kind not in SCALARS:
        raise NotGguf(f"unknown type {kind} in its header")
    return _take(stream, SCALARS[kind])


def read_header(path: Path) -> dict[str, Any]:
    """Metadata of a GGUF file, up to the tokenizer's.

    Raises:
        NotGguf: It is something else.
    """
    with path.open("rb") as stream:
        if (magic := stream.read(4)) != b"GGUF":
            raise NotGguf(f"it begins with {magic!r} instead of b'GGUF'")
        _take(stream, "I")  # version
        _take(stream, "Q")  # number of tensors
        metadata: dict[str, Any] = {}
        for _ in range(_count(stream)):
            key = _string(stream)
            if key.startswith("tokenizer."):
                break  # long lists, and what matters here comes before them
            metadata[key] = _value(stream, _take(stream, "I"))
    return metadata


def cache_bytes(header: dict[str, Any], tokens: int) -> int:
    """Memory of the key-value cache (16 bits), 0 if the header does not say enough.

    Args:
        header: What :func:`read_header` returned.
        tokens: Context of all slots together.
    """
    arch = header.get("general.architecture")
    layers = header.get(f"{arch}.block_count", 0)
    heads = header.get(f"{arch}.attention.head_count", 0)
    kv_heads = header.get(f"{arch}.attention.head_count_kv", heads)
    width = header.get(f"{arch}.embedding_length", 0)
    if not all(isinstance(value, int) and value for value in (layers, heads, kv_heads, width)):
        return 0
    key_length = header.get(f"{arch}.attention.key_length", width // heads)
    value_length = header.get(f"{arch}.attention.value_length", width // heads)
    return int(2 * layers * kv_heads * (key_length + value_length) * tokens)


def file_problems(model: dict[str, Any], warnings: list[str]) -> Iterator[str]:
    """What is wrong with the model's file, or too much for it or for the host.

    Args:
        model: Entry of ``llama_cpp_models``.
        warnings: Gets what may still work.
    """
    name, path = model["name"], Path(model["path"])
    try:
        header = read_header(path)
    except NotGguf as error:
        yield f"{name}: {path} is not a GGUF model: {error}. llama.cpp serves GGUF; vLLM serves safetensors"
        return
    trained = header.get(f"{header.get('general.architecture')}.context_length")
    if isinstance(trained, int) and model["context"] > trained:
        yield f"{name}: context is {model['context']} tokens, but the model was made for {trained}; lower it"
    weights, memory = path.stat().st_size, memory_bytes()
    cache = cache_bytes(header, model["context"] * model["parallel"])
    if weights > memory:
        yield (
            f"{name}: the model has {weights / 1e9:.1f} GB, the host's memory {memory / 1e9:.1f} GB; "
            "choose a smaller model"
        )
    elif weights + cache > memory:
        warnings.append(
            f"{name}: {weights / 1e9:.1f} GB of weights and about {cache / 1e9:.1f} GB of cache are more than the "
            f"host's {memory / 1e9:.1f} GB of memory; lower context ({model['context']}) or "
            f"parallel ({model['parallel']})"
        )


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "models": {"type": "list", "elements": "dict", "required": True},
            "address": {"type": "str", "required": True},
            "api_key": {"type": "str", "required": True, "no_log": True},
        },
        supports_check_mode=True,
    )
    models: list[dict[str, Any]] = module.params["models"]
    address: str = module.params["address"]
    ss = module.get_bin_path("ss", required=True)
    problems = list(common_problems("llama_cpp", models, address, module.params["api_key"]))
    warnings: list[str] = []
    for model in models:
        problems += model_problems(model)
        problems += port_problems("llama-cpp", model, models, address, ss)
        if Path(model["path"]).is_file():
            problems += file_problems(model, warnings)
        elif module.check_mode:
            warnings.append(f"{model['name']}: {model['path']} is not there yet, so it was not checked")
        else:
            problems.append(
                f"{model['name']}: {model['path']} does not exist; put it there with model_store, or correct path"
            )
    for warning in warnings:
        module.warn(warning)
    if problems:
        module.fail_json(msg="\n".join(problems))
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
