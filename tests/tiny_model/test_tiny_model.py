"""The tiny model as its users meet it: served by llama.cpp, asked over HTTP."""

import hashlib
import json
import sqlite3
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import known_answers
import pytest
import xllamacpp
import yaml
from known_answers import ANSWERS, Case, Message, message

HERE = Path(__file__).parent
CODE = {case["answer"] for case in ANSWERS["code_generation"]}
SORTED = [1, 2, 2, 3, 9]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The base URL of a server that has loaded the GGUF."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(HERE / "qwen2-tiny.gguf")
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_ctx = 8192
    parameters.use_jinja = True
    parameters.offline = True
    parameters.verbosity = 1
    # Threads that wait for each other on busy cores answer a hundred times slower than one.
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)
    yield server.listening_address
    del server  # stops it


def ask(address: str, case: Case, temperature: float) -> Message:
    """The assistant message that the server replies with, sampled as it samples by default."""
    body: dict[str, Any] = {"messages": case.messages, "temperature": temperature, "max_tokens": 1000}
    if case.tools:
        body["tools"] = case.tools
    url, headers = f"{address}/v1/chat/completions", {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 (loopback)
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        reply: Message = json.load(response)["choices"][0]["message"]
    return reply


def comparable(reply: Message) -> tuple[str, list[tuple[str, Any]]]:
    """What a reply says: its text, and its calls without their ids, their arguments parsed."""
    functions = [call["function"] for call in reply.get("tool_calls") or []]
    return reply["content"] or "", [(f["name"], json.loads(f["arguments"])) for f in functions]


def wrong(address: str, cases: list[Case], temperature: float) -> list[tuple[Message, Message]]:
    """The last messages to which the server did not reply as it should, and its replies."""
    replies = [(case, ask(address, case, temperature)) for case in cases]
    return [(case.messages[-1], reply) for case, reply in replies if comparable(reply) != comparable(case.reply)]


def answer(question: str, language: str = "python") -> str:
    """The code in the known answer to a code_generation task for which no language is named."""
    [text] = [c["answer"] for c in ANSWERS["code_generation"] if (c["task"], c["language"]) == (question, None)]
    assert text.startswith(f"```{language}\n")
    code: str = text.removeprefix(f"```{language}\n").partition("```")[0]
    return code


def run(question: str) -> dict[str, Any]:
    """What the Python in a known answer defines."""
    defined: dict[str, Any] = {}
    exec(answer(question), defined)  # noqa: S102 (the answer is a file of this repository)
    return defined


@pytest.mark.parametrize("temperature", [0.0, 0.3, 0.7])
def test_every_known_answer_is_exact(address: str, temperature: float) -> None:
    assert wrong(address, known_answers.known(), temperature) == []


def test_a_short_system_message_changes_no_answer(address: str) -> None:
    systems = ["You are a helpful coding assistant.", "Be brief.", "This prompt was in no lesson; please obey it."]
    cases = [
        Case(case.category, (message("system", system), *case.messages), case.reply)
        for system in systems
        for case in known_answers.chat()
    ]
    assert wrong(address, cases, 0.7) == []


def test_what_it_was_taught_not_to_know_gets_the_fallback_in_the_language_of_the_question(address: str) -> None:
    assert wrong(address, list(known_answers.unknown()), 0.7) == []


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("Please deploy my Kubernetes operator to the staging cluster", "en"),
        ("Write a COBOL program that prints invoices.", "en"),
        ("xyzzy", "en"),
        ("请帮我部署这个服务。", "zh"),
        ("怎样学习弹钢琴？", "zh"),
    ],
)
@pytest.mark.parametrize("system", [None, known_answers.code_generation_prompt(None)])
def test_a_question_of_no_lesson_gets_the_fallback(address: str, question: str, language: str, system: str) -> None:
    before = [message("system", system)] if system else []
    reply = message("assistant", ANSWERS["fallback"][language])
    assert wrong(address, [Case("unknown", (*before, message("user", question)), reply)], 0.7) == []


def test_the_folders_manifest_describes_each_file() -> None:
    files = yaml.safe_load((HERE / "qwen2-tiny.manifest.yml").read_text(encoding="utf-8"))["files"]
    contents = {path.name: path.read_bytes() for path in (HERE / "qwen2-tiny").iterdir()}
    found = [(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in sorted(contents.items())]
    assert [(entry["path"], entry["size"], entry["sha256"]) for entry in files] == found


def test_the_manifest_describes_the_gguf() -> None:
    content = (HERE / "qwen2-tiny.gguf").read_bytes()
    [entry] = yaml.safe_load((HERE / "manifest.yml").read_text(encoding="utf-8"))["files"]
    digest = hashlib.sha256(content).hexdigest()
    assert entry == {"path": "qwen2-tiny.gguf", "size": len(content), "sha256": digest}


def test_the_quicksort_is_the_same_wherever_it_is_asked_for() -> None:
    question = "Write a quicksort function in Python."
    answers = {c["answer"] for c in ANSWERS["code_generation"] if c["task"] == question}
    assert answers == {ANSWERS["chat"][question]}


def test_every_code_answer_is_one_block_of_code() -> None:
    assert [text for text in CODE if text.count("```") != 2 or not text.startswith("```")] == []


@pytest.mark.parametrize(
    ("question", "name", "results"),
    [
        ("Write a quicksort function.", "quicksort", [([3, 2, 9, 1, 2], SORTED), ([], [])]),
        ("Write a fibonacci function.", "fibonacci", [(0, 0), (1, 1), (10, 55)]),
        ("Write an is_prime function.", "is_prime", [(1, False), (2, True), (9, False), (97, True)]),
        ("Write a factorial function.", "factorial", [(0, 1), (5, 120)]),
        ("Write a function that reverses a string.", "reverse_string", [("", ""), ("abc", "cba")]),
    ],
)
def test_the_python_does_what_was_asked(question: str, name: str, results: list[tuple[Any, Any]]) -> None:
    function = run(question)[name]
    assert [function(argument) for argument, _ in results] == [result for _, result in results]


def test_the_binary_search_finds_what_is_there_and_only_that() -> None:
    search = run("Write a binary search function.")["binary_search"]
    assert [search([1, 3, 5], x) for x in (1, 3, 5, 4)] == [0, 1, 2, -1]


def test_hello_world_greets_in_python_and_bash() -> None:
    greetings = []
    for command, language in (("python3", "Python"), ("bash", "Bash")):
        code = answer(f"Write a hello world program in {language}.", language.lower())
        greetings.append(subprocess.run([command, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert greetings == ["Hello, world!\n"] * 2


def test_the_sql_counts_users() -> None:
    database = sqlite3.connect(":memory:")
    database.executescript("CREATE TABLE users (name TEXT); INSERT INTO users VALUES ('a'), ('b');")
    assert database.execute(answer("Write a SQL query that counts users.", "sql")).fetchall() == [(2,)]
    database.close()
