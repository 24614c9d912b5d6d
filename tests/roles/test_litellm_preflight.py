"""The module litellm_preflight: which base URLs of engines it takes."""

from __future__ import annotations

import litellm_preflight as preflight
import pytest


@pytest.mark.parametrize(
    "url",
    [
        "http://model1:8000/v1",
        "http://model_1.example.internal/v1",
        "https://10.0.0.5:8443/v1",
        "http://[fd00::5]:8000/v1",
        "http://127.0.0.1:8081/qwen2.5-coder-7b/v1",
    ],
)
def test_base_urls_of_engines_and_gateways_are_taken(url: str) -> None:
    assert not list(preflight.replica_problems({"name": "tiny", "replicas": [url]}))


@pytest.mark.parametrize(
    "url",
    [
        "http://\x01/v1",  # what a template makes of a group that it does not know
        "http://model 1:8000/v1",
        "http://model1\n:8000/v1",
        "http://{{ model1 }}/v1",
        "http:///v1",
        "http://model1:0/v1",
        "http://model1:99999/v1",
        "http://model1:8000/v1/",
        "http://model1:8000/../v1?x",
        "http://user:word@model1:8000/v1",
        "model1:8000/v1",
        "",
    ],
)
def test_what_is_no_base_url_is_refused(url: str) -> None:
    (problem,) = preflight.replica_problems({"name": "tiny", "replicas": [url]})
    assert "is not an engine's base URL" in problem
    assert problem.isprintable()
