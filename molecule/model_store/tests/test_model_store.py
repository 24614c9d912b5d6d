"""Models from everywhere are in place and verified, interruptions do no harm, and what cannot work is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from testinfra.host import Host

from tests.lab.waiting import until

SCENARIO = Path(__file__).resolve().parent.parent
PROJECT = SCENARIO.parent.parent
MANIFEST = yaml.safe_load((PROJECT / "tests/tiny_model/manifest.yml").read_text())["files"]
FILE = MANIFEST[0]
STORE = "/var/lib/models"
TOKEN = "hf_molecule"  # noqa: S105 - of the stand-in hub


def play(playbook: str, *args: str) -> subprocess.Popen[str]:
    """Start one of the scenario's playbooks; what it prints comes at once, as at a terminal."""
    inventory = PROJECT / "molecule/shared/inventory/hosts.yml"
    argv = ["ansible-playbook", f"--inventory={inventory}", str(SCENARIO / playbook), *args]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=PROJECT,
        env=environment,
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What a playbook printed; it must have ended well."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def requests(host: Host) -> list[dict[str, Any]]:
    """What the stand-in hub was asked."""
    return [json.loads(line) for line in host.check_output("cat /srv/hub/requests.jsonl").splitlines()]


def test_every_model_is_what_the_manifest_says_and_readable_by_all(host: Host) -> None:
    names = ["from-controller", "from-host", "from-huggingface", "from-modelscope", "cut-again-and-again"]
    paths = " ".join(f"{STORE}/{name}/{FILE['path']}" for name in names)
    sums = host.check_output(f"runuser -u nobody -- sha256sum {paths}").splitlines()
    assert [line.split()[0] for line in sums] == [FILE["sha256"]] * len(names)
    assert host.check_output(f"stat --dereference --format='%U %a' {paths} | sort -u") == "root 644"
    assert host.check_output(f"ls -A {STORE}/.partial") == ""


def test_what_is_on_the_host_already_is_linked_and_not_copied(host: Host) -> None:
    assert host.file(f"{STORE}/from-host/{FILE['path']}").linked_to == f"/srv/weights/{FILE['path']}"


def test_a_broken_connection_was_continued_where_it_broke(host: Host) -> None:
    ranges = [
        request["range"]
        for request in requests(host)
        if request["host"].startswith("cdn.") and "tiny/cut" in request["path"]
    ]
    assert ranges == [None, "bytes=1500000-", "bytes=3000000-"]


def test_the_token_goes_to_the_hub_and_to_nobody_else(host: Host) -> None:
    for request in requests(host):
        to_hugging_face = request["host"].startswith("hub.") and "/resolve/" in request["path"]
        assert (request["authorization"] is not None) == to_hugging_face
    file = host.file("/etc/model-store/hf-token")
    assert (file.user, file.mode, file.content_string) == ("root", 0o600, TOKEN)
    assert TOKEN not in host.check_output("journalctl --boot --no-pager -u 'model-store@*'")


def test_downloads_have_few_rights(host: Host, few_rights: Callable[[Host, str], None]) -> None:
    few_rights(host, "model-store@x")
    assert host.check_output("systemctl show --property=User --value model-store@x.service") == "model-store"


def test_what_cannot_work_is_refused_and_nothing_is_left_of_it(guest: Callable[..., Host]) -> None:
    one = guest("debian13")
    one.check_output("touch /run/before-refusals && sleep 0.1")
    finished(play("refusals.yml"))
    assert not one.file("/mnt/small/models").exists
    assert one.check_output(f"ls -A {STORE}/.partial") == ""
    assert one.check_output(f"find {STORE} -path '*/.partial*' -prune -o -newer /run/before-refusals -print") == ""


def test_a_damaged_file_is_brought_in_again(guest: Callable[..., Host]) -> None:
    one = guest("debian12")
    path = f"{STORE}/from-controller/{FILE['path']}"
    one.check_output("printf '?' | dd of=%s bs=1 seek=2000000 conv=notrunc status=none", path)
    assert one.file(path).sha256sum != FILE["sha256"]
    finished(play("converge.yml", "--limit=debian12"))
    assert one.file(path).sha256sum == FILE["sha256"]


def test_a_download_goes_on_when_ansible_is_gone(guest: Callable[..., Host]) -> None:
    one = guest("debian13")
    model = {
        "name": "slow",
        "source": "huggingface",
        "repository": "tiny/slow",
        "revision": "0123456789abcdef0123456789abcdef01234567",
        "files": MANIFEST,
    }
    args = ["--limit=debian13", f"--extra-vars={json.dumps({'model_store_models': [model]})}"]
    partial = one.file(f"{STORE}/.partial/slow.{FILE['sha256']}")
    final = one.file(f"{STORE}/slow/{FILE['path']}")

    first = play("converge.yml", *args)
    assert first.stdout
    for line in first.stdout:
        if f" MB of {FILE['size'] / 10**6:.1f} MB, " in line and "MB/s" in line:  # the progress that a person sees
            break
    os.killpg(first.pid, signal.SIGKILL)
    assert 0 < partial.size < FILE["size"]

    one.check_output("touch /srv/hub/go-on")
    until(lambda: partial.size == FILE["size"])
    assert not final.exists  # nobody has verified it yet
    asked = len(requests(one))
    finished(play("converge.yml", *args))
    assert final.sha256sum == FILE["sha256"]
    assert len(requests(one)) == asked
