"""The models are gone, and what is not the role's is not."""

from __future__ import annotations

import pytest
from testinfra.host import Host


@pytest.mark.parametrize(
    "path",
    [
        "/var/lib/models/from-controller",
        "/var/lib/models/from-host",
        "/var/lib/models/from-huggingface",
        "/var/lib/models/.partial",
        "/usr/local/lib/model-store",
        "/etc/model-store",
        "/etc/systemd/system/model-store@.service",
    ],
)
def test_what_the_role_made_is_gone(host: Host, path: str) -> None:
    assert not host.file(path).exists


def test_what_is_not_the_roles_is_still_there(host: Host) -> None:
    assert host.file("/srv/weights/qwen2-tiny.gguf").exists
    assert host.file("/var/lib/models/notes.txt").content_string == "keep me"
    assert not host.user("model-store").exists
