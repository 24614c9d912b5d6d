"""The table of known models: complete, right about sizes, and the same as what docs/models.md says."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.vllm_limits import why_not
from ansible.module_utils.vllm_memory import GIB, Model, Need, Split, batch_of, cache_of, text_config

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "roles" / "vllm"
TABLE = yaml.safe_load((ROLE / "vars" / "main" / "known_models.yml").read_text())
MODELS: list[dict[str, Any]] = TABLE["_vllm_known_models"]
CONFIGS: dict[str, dict[str, Any]] = TABLE["_vllm_known_configs"]
DOCS = (ROOT / "docs" / "models.md").read_text()

# The smallest card of each size in docs/models.md: MiB as nvidia-smi shows them, and its name.
CARDS = {
    "24 GB": (23028, "NVIDIA L4"),
    "48 GB": (46068, "NVIDIA L40S"),
    "80 GB": (81559, "NVIDIA H100 80GB HBM3"),
    "96 GB": (97871, "NVIDIA H20"),
    "141 GB": (143771, "NVIDIA H200"),
}


def known(name: str) -> dict[str, Any]:
    """The first entry that matches a name, as the role takes it."""
    return next(entry for entry in MODELS if re.search(entry["pattern"], name, re.IGNORECASE))


def rows(heading: str) -> list[dict[str, str]]:
    """The first table below a heading of the page: its lines, by the names of its columns."""
    below = dropwhile(lambda line: not line.startswith("|"), DOCS.split(f"\n{heading}\n", 1)[1].splitlines())
    lines = takewhile(lambda line: line.startswith("|"), below)
    names, _, *table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(names, line, strict=True)) for line in table]


def entries() -> list[dict[str, Any]]:
    """The entries to copy, with the cards named in the comment behind each name."""
    text = re.sub(r" # (\d) × (\d+ GB)$", r"\n  cards: \2\n  count: \1", DOCS, flags=re.MULTILINE)
    blocks = re.findall(r"```yaml\n(- name:.*?)```", text, re.DOTALL)
    return [entry for block in blocks for entry in yaml.safe_load(block)]


def need(hub_id: str, cards: str, count: int, context: int, parallel: int) -> Need:
    """What a model needs of each of some cards, by the role's own arithmetic."""
    facts, size, name = CONFIGS[hub_id], *CARDS[cards]
    cache = known(hub_id)["args"].get("kv-cache-dtype", "auto")
    model = Model(hub_id, facts["config"], facts["weights"], context, parallel, kv_cache_dtype=cache)
    return model.on(Split(count), batch_of(size << 20, name, context, None, None))


def fits(hub_id: str, cards: str, count: int, context: int, parallel: int) -> bool:
    """Whether a model fits into the 92 % of some cards that vLLM takes."""
    whole_experts = known(hub_id)["args"].get("enable-expert-parallel", False)
    if why_not(CONFIGS[hub_id]["config"], count, whole_experts):
        return False
    return bool(need(hub_id, cards, count, context, parallel).bytes <= 0.92 * (CARDS[cards][0] << 20))


# --- the table itself ---


@pytest.mark.parametrize("entry", MODELS, ids=[entry["pattern"] for entry in MODELS])
def test_an_entry_says_everything(entry: dict[str, Any]) -> None:
    assert set(entry) == {"pattern", "tool_parser", "reasoning_parser", "chat_template", "args", "claude_code"}
    re.compile(entry["pattern"])
    for key in ("tool_parser", "reasoning_parser", "chat_template"):
        assert entry[key] is None or re.fullmatch(r"[\w.]+", entry[key])
    assert isinstance(entry["args"], dict)
    assert not [flag for flag in entry["args"] if "_" in flag], "the role writes flags with dashes"
    assert entry["tool_parser"] or not entry["claude_code"], "Claude Code needs tools"
    assert "trust-remote-code" not in entry["args"], "no code from a hub is run by default"


@pytest.mark.parametrize(
    ("name", "parser"),
    [
        ("Qwen/Qwen2.5-Coder-32B-Instruct-AWQ", "hermes"),
        ("qwen2.5-coder-0.5b-instruct", "hermes"),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8", "qwen3_coder"),
        ("Qwen/Qwen3-Coder-Next", "qwen3_coder"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "hermes"),
        ("Qwen/Qwen3.8-27B-FP8", "qwen3_coder"),
        ("deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct", None),
        ("deepseek-ai/DeepSeek-V3-0324", "deepseek_v3"),
        ("deepseek-ai/DeepSeek-V3.1-Terminus", "deepseek_v31"),
        ("deepseek-ai/DeepSeek-V3.2", "deepseek_v32"),
        ("deepseek-ai/DeepSeek-V4-Flash-0731", "deepseek_v4"),
        ("deepseek-ai/DeepSeek-V4.1-Flash", "deepseek_v41"),
        ("openai/gpt-oss-20b", "openai"),
        ("zai-org/GLM-4.7-Flash", "glm47"),
        ("zai-org/GLM-5.2-FP8", "glm47"),
        ("MiniMaxAI/MiniMax-M2.5", "minimax_m2"),
        ("MiniMaxAI/MiniMax-M3", "minimax_m3"),
    ],
)
def test_a_model_gets_its_own_parser_and_not_its_relatives(name: str, parser: str | None) -> None:
    assert known(name)["tool_parser"] == parser


def test_only_hybrids_of_a_family_and_its_newer_relatives_differ_in_what_they_think() -> None:
    assert known("Qwen/Qwen3-Coder-Next")["reasoning_parser"] is None
    assert known("Qwen/Qwen3.6-35B-A3B")["reasoning_parser"] == "qwen3"
    assert known("deepseek-ai/DeepSeek-V3")["reasoning_parser"] is None
    assert known("deepseek-ai/DeepSeek-V3.1")["reasoning_parser"] == "deepseek_v3"


@pytest.mark.parametrize("hub_id", CONFIGS)
def test_facts_are_complete_and_the_role_can_reckon_with_them(hub_id: str) -> None:
    facts = CONFIGS[hub_id]
    assert set(facts) == {"revision", "license", "context", "weights", "config"}
    assert facts["revision"] is None or re.fullmatch("[0-9a-f]{40}", facts["revision"])
    assert facts["context"] == text_config(facts["config"])["max_position_embeddings"]
    assert facts["config"]["architectures"] and facts["config"]["model_type"]
    one = need(hub_id, "141 GB", 1, facts["context"], 1)
    assert facts["weights"] <= one.weights < 1.1 * facts["weights"]
    assert one.cached > 0


def qwen2_parameters(config: dict[str, Any]) -> tuple[int, int]:
    """Parameters of a Qwen2 in its layers' matrices, and all others (embeddings, norms, biases)."""
    width, layers, inner = (config[key] for key in ("hidden_size", "num_hidden_layers", "intermediate_size"))
    pairs = width // config["num_attention_heads"] * config["num_key_value_heads"]
    matrices = layers * (2 * width * width + 2 * width * pairs + 3 * width * inner)
    embeddings = config["vocab_size"] * width * (1 if config["tie_word_embeddings"] else 2)
    return matrices, embeddings + layers * (3 * width + 2 * pairs) + width


@pytest.mark.parametrize("hub_id", [name for name in CONFIGS if "Qwen2.5-Coder" in name and "GPTQ" not in name])
def test_the_weights_of_a_dense_model_are_what_its_config_says(hub_id: str) -> None:
    matrices, others = qwen2_parameters(CONFIGS[hub_id]["config"])
    if hub_id.endswith("AWQ"):  # 4 bits, for 128 of them a scale of 16 and a zero of 4 bits
        expected = (matrices * 4 + matrices // 128 * 20) // 8 + 2 * others
    else:
        expected = 2 * (matrices + others)
    assert CONFIGS[hub_id]["weights"] == expected


def test_a_quantized_build_has_the_shapes_of_its_original() -> None:
    for hub_id, facts in CONFIGS.items():
        original = CONFIGS.get(re.sub(r"-(AWQ|GPTQ-Int4|FP8)$", "", hub_id))
        if original is None or original is facts:
            continue
        differ = {key for key, value in facts["config"].items() if original["config"].get(key) != value}
        assert differ <= {"quantization_config", "torch_dtype"}, hub_id
        assert facts["weights"] < 0.6 * original["weights"], hub_id


# --- docs/models.md ---


def test_the_page_states_the_facts_of_the_table() -> None:
    page = {row["model"].strip("`"): row for row in rows("## Facts")}
    assert list(page) == list(CONFIGS)
    for hub_id, row in page.items():
        facts, entry = CONFIGS[hub_id], known(hub_id)
        tools = entry["tool_parser"]
        use = "yes" if entry["claude_code"] else "tools only" if tools else "chat only"
        assert row["revision"].strip("`") == (facts["revision"] or "look it up"), hub_id
        assert (row["licence"], row["context"]) == (facts["license"], str(facts["context"])), hub_id
        assert (row["tools"].strip("`"), row["Claude Code"]) == (tools or "none", use), hub_id


def test_the_page_has_the_memory_that_the_role_reckons_with() -> None:
    page = {row["model"].strip("`"): row for row in rows("## Memory")}
    assert list(page) == list(CONFIGS)
    for hub_id, row in page.items():
        text, args = text_config(CONFIGS[hub_id]["config"]), known(hub_id)["args"]
        cache = cache_of(text, Split(), 8192, "auto", args.get("kv-cache-dtype", "auto"), 16)
        assert row["weights, GiB"] == f"{CONFIGS[hub_id]['weights'] / GIB:.1f}", hub_id
        assert row["cache, KiB per token"] == f"{cache.token_bytes / 1024:.1f}", hub_id
        assert row["one request of 32768, GiB"] == f"{cache.request_bytes(32768) / GIB:.2f}", hub_id
        for cards in CARDS:
            counts = [count for count in (1, 2, 4, 8) if fits(hub_id, cards, count, 32768, 4)]
            assert row[cards] == (str(counts[0]) if counts else "–"), (hub_id, cards)


def test_every_entry_to_copy_is_right_and_fits_its_cards() -> None:
    found = entries()
    assert sorted(entry["repository"] for entry in found) == sorted(CONFIGS)
    for entry in found:
        hub_id, count = entry["repository"], entry["count"]
        facts = CONFIGS[hub_id]
        assert entry["name"] == hub_id.split("/")[1].lower()
        assert entry["revision"] == (facts["revision"] or "<commit>"), hub_id
        assert (entry["engine"], entry["source"]) == ("vllm", "huggingface"), hub_id
        assert entry["gpus"] == list(range(count)), hub_id
        assert entry["context"] <= facts["context"], hub_id
        if known(hub_id)["claude_code"]:
            assert entry["context"] >= 65536, hub_id
        assert fits(hub_id, entry["cards"], count, entry["context"], entry["parallel"]), hub_id
        template = known(hub_id)["chat_template"]
        assert (template or "") == Path(entry.get("chat_template", "")).name, hub_id


# --- the command that makes a manifest ---

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = b'{"model_type": "qwen2"}\n'
LARGE = {"size": 15, "sha256": "ab" * 32, "pointerSize": 130}


class Hub(BaseHTTPRequestHandler):
    """A stand-in for the hub: its answer about a model, in the form that huggingface_hub reads, and one small file."""

    def do_GET(self) -> None:
        if self.path == "/api/models/owner/model/revision/main?blobs=true":
            siblings = [
                {"rfilename": "README.md", "size": 9, "blobId": "c" * 40},
                {"rfilename": "config.json", "size": len(SMALL), "blobId": "d" * 40},
                {"rfilename": "model.safetensors", "size": 15, "blobId": "e" * 40, "lfs": LARGE},
                {"rfilename": "original/model.safetensors", "size": 15, "blobId": "f" * 40, "lfs": LARGE},
            ]
            body = json.dumps({"id": "owner/model", "sha": COMMIT, "siblings": siblings}).encode()
        elif self.path == f"/owner/model/resolve/{COMMIT}/config.json":
            body = SMALL
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_command_of_the_page_makes_a_manifest(hub: str) -> None:
    command = re.search(r"\$ python3 - \S+ \S+ <<'EOF'\n(.*?)^EOF$", DOCS, re.DOTALL | re.MULTILINE)
    assert command
    run = subprocess.run(
        [sys.executable, "-", "owner/model", "main"],
        input=command[1],
        env={**os.environ, "HF_ENDPOINT": hub, "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert yaml.safe_load(run.stdout) == {
        "revision": COMMIT,
        "files": [
            {"path": "config.json", "size": len(SMALL), "sha256": hashlib.sha256(SMALL).hexdigest()},
            {"path": "model.safetensors", "size": 15, "sha256": "ab" * 32},
        ],
    }
