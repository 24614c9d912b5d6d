"""The module vllm_preflight and what it sees of a host; `nvidia-smi` is a stand-in, for there is no card here."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vllm_preflight as preflight
from ansible.module_utils.testing import patch_module_args
from ansible.module_utils.vllm_cards import (
    MIB,
    QUERY,
    Card,
    cards_of_bus,
    cards_of_driver,
    driver_of_kernel,
    driver_problems,
    older,
)

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests/tiny_model/qwen2-tiny"
KEY = "0123456789abcdef0123456789abcdef"

# As drivers 580 and 550 answer.
H100_AND_L4 = """\
0, NVIDIA H100 80GB HBM3, 81559, 471, 9.0, Disabled, 580.95.05
1, NVIDIA L4, 23034, 471, 8.9, [N/A], 580.95.05
"""
OLD = "0, NVIDIA L4, 23034, 471, 8.9, [N/A], 550.163.01\n"


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a stand-in for nvidia-smi first on the path, which answers one query."""

    def put(answer: str) -> None:
        program = tmp_path / "bin/nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n[ \"$1\" = --query-gpu={QUERY} ] || exit 6\ncat <<'END'\n{answer}END\n")
        program.chmod(0o755)
        path = f"{program.parent}:{Path(shutil.which('ss') or '/usr/bin/ss').parent}:/usr/bin:/bin"
        monkeypatch.setenv("PATH", path)

    return put


def entry(**settings: Any) -> dict[str, Any]:
    return {"name": "tiny", "path": str(TINY), "port": free_port(), "context": 4096, "parallel": 2, **settings}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run(capsys: pytest.CaptureFixture[str], *models: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """What the module answers."""
    arguments = {"models": list(models), "address": "127.0.0.1", "api_key": KEY, "release": "0.33.0", **settings}
    with patch_module_args(arguments), pytest.raises(SystemExit):
        preflight.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert KEY not in json.dumps(answer)
    return answer


def test_the_plan_of_a_host_with_two_cards(
    nvidia_smi: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    nvidia_smi(H100_AND_L4)
    answer = run(capsys, entry(gpus=[1]), minimum_driver="580.65.06")
    assert answer["changed"] is False
    assert answer["driver"] == "580.95.05"
    assert [card["memory_gib"] for card in answer["plan"]["cards"]] == [79.19, 22.03]
    assert [len(card["models"]) for card in answer["plan"]["cards"]] == [0, 1]
    assert answer["plan"]["models"]["tiny"]["gpu_memory_utilization"] == 0.92


def test_a_driver_that_is_too_old_is_refused_with_both_numbers_and_three_ways_out(
    nvidia_smi: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    nvidia_smi(OLD)
    message = run(capsys, entry(), minimum_driver="580.65.06")["msg"]
    for words in ("550.163.01", "580.65.06", "vLLM 0.33.0", "nvidia_driver", "vllm_requirements", "llama_cpp"):
        assert words in message
    assert "failed" not in run(capsys, entry(), minimum_driver="525.60.13")


def test_a_driver_that_works_after_a_restart_is_not_refused(
    nvidia_smi: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    nvidia_smi(OLD)
    answer = run(capsys, entry(), minimum_driver="580.65.06", reboot_needed=True)
    assert "550.163.01" in str(answer["warnings"])
    assert "tiny" in answer["plan"]["models"]


def test_all_problems_are_named_at_once(
    nvidia_smi: Callable[[str], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    nvidia_smi(OLD)
    (tmp_path / "gguf").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        message = run(
            capsys,
            entry(name="taken", port=taken.getsockname()[1]),
            entry(name="absent", path="/nowhere"),
            entry(name="gguf", path=str(tmp_path / "gguf")),
            entry(name="low", port=80, context=100, parallel=0, gpu_memory_utilization=2, dtype="fp16"),
            entry(name="many", gpus=[0, 1]),
            entry(name="no good"),
            minimum_driver="580.65.06",
            address="192.0.2.1",
        )["msg"]
    # An address that the host lacks does not keep a listener of another address from being seen.
    for words in (
        "vllm_address is 192.0.2.1, which this host does not have",
        "absent: /nowhere does not exist; put it there with model_store",
        "gguf has no config.json",
        "low: port is 80",
        "low: context is 100 tokens",
        "low: parallel is 0",
        "low: gpu_memory_utilization is 2",
        "low: dtype is 'fp16'; choose auto, float32",
        "many: gpus has 1, but this host has cards 0",
        "name 'no good' of a model",
        "the NVIDIA driver is 550.163.01",
    ):
        assert words in message


def test_a_taken_port_is_named_with_who_has_it(
    nvidia_smi: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    nvidia_smi(H100_AND_L4)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = run(capsys, entry(port=port))["msg"]
    assert f"tiny: port {port} on 127.0.0.1 is taken by" in message


def test_a_weak_key_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    message = run(capsys, entry(), api_key="short", device="cpu")["msg"]
    assert "vllm_api_key has 5 characters" in message
    assert "short" not in message


def test_a_number_that_is_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    message = run(capsys, entry(extra_args={"max-num-seqs": "many"}), device="cpu")["msg"]
    assert message == "tiny: max_num_seqs is 'many'; it is a whole number"


def test_a_half_fetched_model_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.copy(TINY / "config.json", tmp_path)
    assert "has no *.safetensors" in run(capsys, entry(path=str(tmp_path)), device="cpu")["msg"]
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").write_bytes(b"")
    message = run(capsys, entry(path=str(tmp_path)), device="cpu")["msg"]
    assert "lacks 1 of 2 files, model-2.safetensors first" in message
    (tmp_path / "config.json").write_text("{")
    assert "is not JSON" in run(capsys, entry(path=str(tmp_path)), device="cpu")["msg"]


def test_check_mode_plans_models_that_are_not_there_yet(
    nvidia_smi: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    nvidia_smi(H100_AND_L4)
    config = json.loads((TINY / "config.json").read_text())
    model = entry(path="/nowhere", config=config, weights=4238400)
    answer = run(capsys, model, _ansible_check_mode=True)
    assert answer["plan"]["models"]["tiny"]["kv_cache_bytes_per_token"] == 1024
    assert "its files were not checked" in str(answer["warnings"])


def test_cards_of_the_driver() -> None:
    cards, driver = cards_of_driver(H100_AND_L4)
    assert driver == "580.95.05"
    assert cards[0] == Card(0, "NVIDIA H100 80GB HBM3", 81088 * MIB, 81559 * MIB, (9, 0))
    cut, _ = cards_of_driver("0, NVIDIA A100-SXM4-40GB, 40960, 445, 8.0, Enabled, 580.95.05")
    assert cut[0].mig
    shared, _ = cards_of_driver("0, NVIDIA GB10, [N/A], [N/A], 12.1, [N/A], 580.95.05")
    assert shared[0].memory is None
    assert cards_of_driver("") == ([], None)


def device(bus: Path, address: str, vendor: str, kind: str, code: str) -> None:
    """A folder like those of /sys/bus/pci/devices."""
    folder = bus / address
    folder.mkdir()
    for name, value in (("vendor", vendor), ("class", kind), ("device", code)):
        (folder / name).write_text(f"{value}\n")


def test_cards_of_the_bus_before_there_is_a_driver(tmp_path: Path) -> None:
    device(tmp_path, "0000:81:00.0", "0x10de", "0x030200", "0x2330")
    device(tmp_path, "0000:21:00.0", "0x10de", "0x030000", "0x2684")
    device(tmp_path, "0000:21:00.1", "0x10de", "0x040300", "0x22ba")  # its sound
    device(tmp_path, "0000:c1:00.0", "0x10de", "0x068000", "0x22a3")  # an NVSwitch
    device(tmp_path, "0000:05:00.0", "0x1a03", "0x030000", "0x2000")  # of the board
    device(tmp_path, "0000:a1:00.0", "0x10de", "0x030200", "0xffff")
    cards = cards_of_bus(tmp_path)
    assert [(card.index, card.name) for card in cards] == [
        (0, "GeForce RTX 4090"),
        (1, "H100 SXM 80 GB"),
        (2, "NVIDIA card 10de:ffff"),
    ]
    assert cards[1].total == 81559 * MIB
    assert cards[2].memory is None


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.247.01  Mon Apr 14 02:00:00 UTC 2025\n", "535.247.01"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs@builder)\n"
            "GCC version:  gcc version 14.2.0 (Debian 14.2.0-19)\n",
            "580.95.05",
        ),
    ],
)
def test_the_loaded_driver(tmp_path: Path, text: str, driver: str) -> None:
    version = tmp_path / "version"
    assert driver_of_kernel(version) is None
    version.write_text(text)
    assert driver_of_kernel(version) == driver


def test_versions_of_drivers_are_compared_as_numbers() -> None:
    assert older("550.163.01", "580.65.06")
    assert older("580.9.01", "580.65.06")
    assert not older("580.65.06", "580.65.06")
    assert not older("1000.1", "580.65.06")


def test_a_host_without_cards_or_without_a_driver_is_told_what_to_do() -> None:
    assert "has no NVIDIA card on its PCI bus" in next(driver_problems([], None, "", "0.33.0"))
    card = Card(0, "L4", 22 << 30, 23034 * MIB, (8, 9))
    message = next(driver_problems([card], None, "580.65.06", "0.33.0"))
    assert "no NVIDIA driver is loaded for L4. Run the role nvidia_driver" in message
    assert "needs at least 580.65.06" in message
