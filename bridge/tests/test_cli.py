"""The commands for people, as they are typed: what they print, and how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from local_llm_bridge import claude_code
from tests.services import (
    ENGINE_KEY,
    MODEL,
    PROGRAM,
    FakeEngine,
    answer,
    configuration,
    delta,
    events,
    free_port,
    piece,
    piped,
    request_of,
    usage,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

CHECKS = [
    "settings",
    "engine",
    "model",
    "key",
    "completion",
    "streaming",
    "tool calling",
    "context",
    "sandbox",
    "tools",
    "Claude Code",
]


def run(
    *arguments: str, environment: Mapping[str, str], program: str = PROGRAM, text: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the program with an environment of its own."""
    return subprocess.run(
        [program, *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment},
    )


def doctor(*arguments: str, environment: Mapping[str, str], cwd: Path | None = None) -> dict[str, dict[str, Any]]:
    """Run `doctor --json`; gives its findings by their names."""
    done = run("doctor", "--json", *arguments, environment=environment, cwd=cwd)
    findings: list[dict[str, Any]] = json.loads(done.stdout)
    assert done.returncode == any(finding["ok"] is False for finding in findings), done.stderr
    assert done.stderr == ""
    assert ENGINE_KEY not in done.stdout
    assert all(finding["todo"] for finding in findings if finding["ok"] is False)
    return {finding["check"]: finding for finding in findings}


def failed(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the names of the checks that failed."""
    return [name for name, finding in found.items() if finding["ok"] is False]


def file(folder: Path, content: object, name: str = "config.yml") -> str:
    """Write a YAML file; gives its path."""
    path = folder / name
    path.write_text(yaml.safe_dump(content))
    return str(path)


class Listing(FakeEngine):
    """Stands for an engine with one model, as vLLM lists it, that answers every chat alike, and all at once."""

    def _handle(self, connection: socket.socket) -> None:
        models = json.dumps({"data": [{"id": MODEL, "max_model_len": 32768}]})
        asked = request_of(connection)
        connection.sendall(self.reply if asked else answer("200 OK", "application/json", models))


class Buffered(Listing):
    """Stands for an engine behind a proxy that keeps an answer until it is whole."""

    def _handle(self, connection: socket.socket) -> None:
        time.sleep(1.1)  # so long it takes to write it
        super()._handle(connection)


class TestDoctor:
    """What it says of settings, engine and tools."""

    def test_all_is_well_in_front_of_a_real_engine(self, environment: dict[str, str]) -> None:
        done = run("doctor", environment=environment)
        assert done.returncode == 0, done.stdout
        lines = done.stdout.splitlines()
        assert [line[6:].partition(":")[0] for line in lines] == CHECKS
        assert {line[:6] for line in lines[:8]} == {"ok    "}
        assert {line[:6] for line in lines[8:]} == {"--    "}, "what is off or not here is not called well"
        assert "'pong' after 0." in done.stdout
        assert "tokens/s" in done.stdout
        assert "the model calls a tool" in done.stdout
        assert ENGINE_KEY not in done.stdout

    def test_nothing_behind_the_address(self) -> None:
        url = f"http://127.0.0.1:{free_port()}"
        found = doctor(environment={"LOCAL_API_URL": url, "OPENAI_API_KEY": ENGINE_KEY})
        assert failed(found) == ["engine"]
        assert "Connection refused" in found["engine"]["found"]
        assert "systemctl status" in found["engine"]["todo"]
        for name in CHECKS[2:8]:
            assert found[name]["ok"] is None, "what was not done is not called well"
            assert found[name]["found"] == "not done, as the check before failed: engine"

    def test_a_failure_has_its_remedy_below(self) -> None:
        done = run("doctor", environment={"LOCAL_API_URL": f"http://127.0.0.1:{free_port()}"})
        assert done.returncode == 1
        lines = done.stdout.splitlines()
        assert lines[1].startswith("FAIL  engine: ")
        assert lines[2].startswith("        → On its host: ")

    def test_a_wrong_key(self, environment: dict[str, str]) -> None:
        found = doctor(environment={**environment, "OPENAI_API_KEY": "wrong"})
        assert failed(found) == ["key"]
        assert found["engine"]["ok"] is True
        assert found["key"]["found"] == "the engine refuses it"
        found = doctor(environment={**environment, "OPENAI_API_KEY": ""})
        assert found["key"]["found"] == "the engine wants one, and none is set"

    def test_a_model_that_is_not_served(self, environment: dict[str, str]) -> None:
        found = doctor(environment={**environment, "MODEL_NAME": "another"})
        assert failed(found) == ["model"]
        assert found["model"]["found"] == f"another is not served; the engine serves {MODEL}"
        assert found["completion"]["ok"] is None

    def test_no_model_needs_to_be_named_where_there_is_one(self, environment: dict[str, str]) -> None:
        found = doctor(environment={**environment, "MODEL_NAME": ""})
        assert failed(found) == []
        assert found["model"]["found"] == f"{MODEL}, the only one"

    def test_wrong_settings_come_first(self) -> None:
        found = doctor(environment={"OPENAI_TIMEOUT": "60s"})
        assert failed(found) == ["settings"]
        assert "OPENAI_TIMEOUT: found '60s'" in found["settings"]["found"]
        assert list(found) == CHECKS
        assert {found[name]["ok"] for name in CHECKS[1:]} == {None}

    def test_something_else_behind_the_address(self) -> None:
        with FakeEngine(answer("200 OK", "text/html", "<html>")).running() as url:
            found = doctor(environment={"LOCAL_API_URL": url})
        assert failed(found) == ["engine"]
        assert "did not answer with a list of models" in found["engine"]["found"]

    def test_an_engine_without_a_list_of_models(self, environment: dict[str, str]) -> None:
        class Listless(Listing):
            def _handle(self, connection: socket.socket) -> None:
                missing = answer("404 Not Found", "application/json", '{"detail":"Not Found"}')
                connection.sendall(self.reply if request_of(connection) else missing)

        with Listless(events(piece("4"), piece("2"), piece("", "stop"))).running() as url:
            found = doctor(environment={**environment, "LOCAL_API_URL": url})
        assert failed(found) == []
        assert found["context"]["ok"] is None
        assert found["context"]["found"] == "the engine does not tell"

    @pytest.mark.parametrize(
        "told",
        [
            {"max_model_len": "32768"},
            {"context_length": 32768, "max_model_len": None},
            {"loaded_context_length": 32768, "max_context_length": 131072},
            {"context_window": 32768},
            {"meta": {"n_ctx": 32768, "n_ctx_train": 131072}},
        ],
    )
    def test_a_length_of_the_context_is_read_however_it_is_told(
        self, environment: dict[str, str], told: dict[str, object]
    ) -> None:
        class Telling(Listing):
            def _handle(self, connection: socket.socket) -> None:
                models = answer("200 OK", "application/json", json.dumps({"data": [{"id": MODEL, **told}]}))
                connection.sendall(self.reply if request_of(connection) else models)

        with Telling(events(piece("42", "stop"))).running() as url:
            found = doctor(environment={**environment, "LOCAL_API_URL": url})
        assert found["context"]["found"] == "the engine has 32768 tokens"

    @pytest.mark.parametrize(
        ("reply", "said", "todo"),
        [
            (
                answer("302 Found", "text/html", "").replace(b"connection", b"location: /login\r\nconnection"),
                "redirects to /login",
                "check the address",
            ),
            (answer("200 OK", "text/html", "<h1>Log in</h1>"), "Log in", "check the address"),
            (answer("503 Loading", "application/json", '{"error": "Loading model"}'), "Loading model", "Wait"),
            (
                answer("200 OK", "application/json", "x").replace(
                    b"connection", b"content-encoding: gzip\r\nconnection"
                ),
                "turn compression off",
                "check the address",
            ),
            (answer("500 No", "application/json", '{"error": "CUDA error"}'), "CUDA error", "log"),
        ],
    )
    def test_what_answers_is_not_looked_for(self, reply: bytes, said: str, todo: str) -> None:
        with FakeEngine(reply).running() as url:
            found = doctor(environment={"LOCAL_API_URL": url, "MODEL_NAME": "m"})
        assert failed(found) == ["engine"]
        assert said in found["engine"]["found"]
        assert todo in found["engine"]["todo"]
        assert "systemctl" not in found["engine"]["todo"]
        assert "firewall" not in found["engine"]["todo"]

    def test_a_servers_settings_and_credentials(self, engine: str, tmp_path: Path) -> None:
        (tmp_path / "engine-key").write_text(ENGINE_KEY)
        config = file(tmp_path, configuration(8080, engine, engine))
        credentials = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
        found = doctor("--config", config, environment=credentials)
        assert failed(found) == [f"context of {MODEL}", "model of model1"]
        assert found[f"completion of {MODEL}"]["ok"] is True
        # The fixture gives each of two slots half of its 4096 tokens.
        assert found[f"context of {MODEL}"]["found"] == "4096 tokens in the settings, 2048 in the engine"
        assert found[f"context of {MODEL}"]["todo"].startswith("Set context: 2048")
        assert found["Claude Code"]["ok"] is None
        found = doctor("--config", config, environment={})
        assert failed(found) == ["settings"]
        assert "sudo CREDENTIALS_DIRECTORY=/run/credentials/" in found["settings"]["todo"]

    def test_a_model_that_cannot_call_tools(self, environment: dict[str, str], tmp_path: Path) -> None:
        talker = Listing(events(piece("4"), piece("2"), piece("", "stop")))
        with talker.running() as url:
            found = doctor(environment={**environment, "LOCAL_API_URL": url})
        assert found["tool calling"]["ok"] is None, "nothing that is on needs it"
        assert "--enable-auto-tool-choice --tool-call-parser" in found["tool calling"]["todo"]
        with talker.running() as url:
            found = doctor(
                environment={**environment, "LOCAL_API_URL": url, "LOCAL_LLM_TOOLS_DIR": str(tmp_path)},
            )
        assert "tool calling" in failed(found)
        assert found["tool calling"]["found"] == "the model was given a tool, and wrote '42'"

    def test_an_answer_that_something_keeps_until_it_is_whole(self, environment: dict[str, str]) -> None:
        whole = events(*[piece(f"{number} ") for number in range(20)], piece("", "stop"))
        with Buffered(whole).running() as url:
            found = doctor(environment={**environment, "LOCAL_API_URL": url})
        assert failed(found) == ["streaming"]
        assert "20 tokens in 1 pieces" in found["streaming"]["found"]
        assert "buffering" in found["streaming"]["todo"]
        assert found["context"]["found"] == "the engine has 32768 tokens"

    def test_pieces_that_only_arrive_together_are_no_fault(self, environment: dict[str, str]) -> None:
        """Over TLS, and through a proxy, what a quick engine writes within milliseconds is one packet by chance."""
        whole = events(*[piece(f"{number} ") for number in range(20)], piece("", "stop"))
        with Listing(whole).running() as url:
            found = doctor(environment={**environment, "LOCAL_API_URL": url})
        assert failed(found) == []
        assert "too quick to show" in found["streaming"]["found"]

    def test_a_model_that_never_stops_thinking(self, environment: dict[str, str]) -> None:
        with Listing(events(delta(reasoning="s "), delta("length"), usage(10, 512))).running() as url:
            found = doctor(environment={**environment, "LOCAL_API_URL": url})
        assert failed(found) == ["completion"]
        assert "spent 512 tokens on thinking" in found["completion"]["found"]
        assert "LOCAL_LLM_MAX_TOKENS" in found["completion"]["todo"]

    def test_a_model_that_thinks_and_answers(self, environment: dict[str, str]) -> None:
        reply = events(delta(reasoning="hm hm "), piece("pong", "stop"), usage(10, 10))
        with Listing(reply).running() as url:
            found = doctor(environment={**environment, "LOCAL_API_URL": url})
        assert failed(found) == []
        assert found["completion"]["found"].endswith("6 tokens of it thinking")

    def test_the_operators_tools(self, environment: dict[str, str], tmp_path: Path) -> None:
        tool = {"name": "greet", "description": "Greet", "template": "Hello"}
        file(tmp_path, tool, "greet.yml")
        with_tools = {**environment, "LOCAL_LLM_TOOLS_DIR": str(tmp_path)}
        assert doctor(environment=with_tools)["tools"]["found"] == f"{tmp_path}: greet"
        file(tmp_path, {**tool, "template": "Hello {{ name }}"}, "greet.yml")
        found = doctor(environment=with_tools)
        assert failed(found) == ["tools"]
        assert "greet.yml: line" in found["tools"]["found"]

    @pytest.mark.usefixtures("bubblewrap")
    def test_the_sandbox(self, environment: dict[str, str], tmp_path: Path) -> None:
        found = doctor(environment={**environment, "LOCAL_LLM_EXECUTE_PYTHON": "1"})
        assert found["sandbox"]["ok"] is True, found["sandbox"]
        assert found["sandbox"]["found"].startswith("print(1) ran in ")
        found = doctor(environment={**environment, "LOCAL_LLM_EXECUTE_PYTHON": "1", "PATH": str(tmp_path)})
        assert failed(found) == ["sandbox"]
        assert "found no bubblewrap" in found["sandbox"]["found"]


class TestDoctorOnClaudeCode:
    """What it says of Claude Code's entry."""

    @pytest.fixture
    def home(self, tmp_path: Path) -> Path:
        home = tmp_path / "home"
        home.mkdir()
        return home

    def look(
        self, home: Path, content: object, environment: Mapping[str, str], project: Path | None = None
    ) -> dict[str, Any]:
        """Have the doctor look at a .claude.json."""
        (home / ".claude.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return doctor(environment={**environment, "HOME": str(home)}, cwd=project or home)["Claude Code"]

    def stdio_entry(self, environment: Mapping[str, str], **more: object) -> dict[str, Any]:
        return {"type": "stdio", "command": PROGRAM, "args": [], "env": dict(environment), "alwaysLoad": True, **more}

    def test_no_entry_gives_the_line_to_run(self, home: Path, environment: dict[str, str]) -> None:
        found = self.look(home, {"mcpServers": {"other": {"command": "x"}}}, environment)
        assert (found["ok"], found["found"]) == (False, "it has no entry for the bridge")
        command = found["todo"].removeprefix("Run: claude mcp add-json --scope user local-llm '").removesuffix("'")
        entry = json.loads(command)
        assert entry["command"] == PROGRAM
        assert entry["env"] == {**environment, "OPENAI_API_KEY": "${OPENAI_API_KEY}"}
        assert self.look(home, {"mcpServers": {"local-llm": entry}}, environment)["ok"] is True

    def test_an_entry_for_another_engine(self, home: Path, environment: dict[str, str]) -> None:
        servers = {"mcpServers": {"mine": self.stdio_entry({})}}
        found = self.look(home, servers, environment)
        assert found["ok"] is False
        assert "its bridge asks http://127.0.0.1:8000/v1 for its only model without a key" in found["found"]
        servers = {"mcpServers": {"mine": self.stdio_entry({"OPENAI_TIMEOUT": "60s"})}}
        assert (
            "its bridge would not start: OPENAI_TIMEOUT: found '60s'" in self.look(home, servers, environment)["found"]
        )

    def test_an_entry_whose_program_is_not_there(self, home: Path, environment: dict[str, str]) -> None:
        entry = self.stdio_entry(environment, command="/no/local-llm-bridge")
        found = self.look(home, {"mcpServers": {"mine": entry}}, environment)
        assert "its command '/no/local-llm-bridge' is not there" in found["found"]

    def test_a_settings_file_of_stdio(self, home: Path, environment: dict[str, str], engine: str) -> None:
        (home / "key").write_text(ENGINE_KEY)
        models = [{"name": MODEL, "url": engine, "context": 2048, "api_key_file": str(home / "key")}]
        config = file(home, {"models": models})
        entry = self.stdio_entry({}, args=["stdio", "--config", config])
        assert self.look(home, {"mcpServers": {"mine": entry}}, environment)["ok"] is True

    def test_what_is_nearer_counts(self, home: Path, environment: dict[str, str], tmp_path: Path) -> None:
        good, bad = self.stdio_entry(environment), self.stdio_entry({})
        project = tmp_path / "project"
        project.mkdir()
        content = {"mcpServers": {"user": bad}}
        (project / ".mcp.json").write_text(json.dumps({"mcpServers": {"shared": good}}))
        assert self.look(home, content, environment, project)["found"] == f"shared in {project}/.mcp.json"
        local = {**content, "projects": {str(project): {"mcpServers": {"near": good}}}}
        assert self.look(home, local, environment, project)["found"] == f"near in {home}/.claude.json"
        assert self.look(home, local, environment, home)["found"].startswith("user in ")

    @pytest.mark.parametrize(
        ("entry", "found", "todo"),
        [
            ({"url": "http://g/mcp"}, 'no "type": "http"', 'Add "type": "http"'),
            ({"type": "http", "url": "http://g/mcp"}, "it sends no token", "local-llm-bridge token new"),
            (
                {"type": "http", "url": "http://g/mcp", "headers": {"Authorization": "Bearer ${LOCAL_LLM_TOKEN}"}},
                "it uses LOCAL_LLM_TOKEN, not set here",
                "Set LOCAL_LLM_TOKEN",
            ),
        ],
    )
    def test_an_entry_for_http(
        self, home: Path, environment: dict[str, str], entry: dict[str, Any], found: str, todo: str
    ) -> None:
        finding = self.look(home, {"mcpServers": {"local-llm": entry}}, environment)
        assert finding["ok"] is False
        assert found in finding["found"]
        assert todo in finding["todo"]

    def test_a_good_entry_for_http(self, home: Path, environment: dict[str, str]) -> None:
        entry = {"type": "http", "url": "http://g/mcp", "headersHelper": "cat headers.json"}
        found = self.look(home, {"mcpServers": {"local-llm": entry}}, environment)
        assert found["ok"] is True
        assert '"alwaysLoad": true' in found["todo"]

    def test_an_administrators_file_shuts_out_all_others(
        self, home: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        managed = home / "managed-mcp.json"
        monkeypatch.setattr(claude_code, "_MANAGED", managed)  # its place, below /etc, is not the tests' to write
        (home / ".claude.json").write_text(json.dumps({"mcpServers": {"mine": self.stdio_entry(environment)}}))
        found = claude_code.find_entry({"HOME": str(home)}, home)
        assert found is not None
        assert found.name == "mine"
        managed.write_text("{}")
        assert claude_code.find_entry({"HOME": str(home)}, home) is None

    def test_a_broken_file(self, home: Path, environment: dict[str, str]) -> None:
        assert ".claude.json: is not valid JSON" in self.look(home, "{", environment)["found"]
        assert self.look(home, {"mcpServers": [], "projects": 5}, environment)["ok"] is False


class TestAsk:
    """One question."""

    def test_the_answer_is_on_stdout_and_nothing_else(self, environment: dict[str, str]) -> None:
        done = run("ask", "What is the capital of France?", environment=environment)
        assert (done.returncode, done.stdout, done.stderr) == (0, "Paris\n", "")

    def test_the_text_can_be_piped_in(self, environment: dict[str, str]) -> None:
        assert run("ask", "-", environment=environment, text="ping").stdout == "pong\n"

    def test_any_tool_can_be_asked(self, environment: dict[str, str], answers: dict[str, Any]) -> None:
        task, code = answers["code_generation"][0]["task"], answers["code_generation"][0]["answer"]
        done = run("ask", "--tool", "code_generation", task, environment=environment)
        assert (done.returncode, done.stdout) == (0, f"{code}\n")

    def test_json_has_the_whole_result(self, environment: dict[str, str]) -> None:
        done = run("ask", "--json", "--model", MODEL, "ping", environment=environment)
        result = json.loads(done.stdout)
        assert result["content"] == [{"type": "text", "text": "pong"}]
        assert (result["_meta"]["model"], result["_meta"]["routing"]) == (MODEL, "asked for by name")

    def test_an_answer_cannot_command_a_terminal(self, environment: dict[str, str]) -> None:
        ours, theirs = os.openpty()
        with FakeEngine(events(piece("\x1b]0;title\x07a\tb\r\n\u3000x", "stop"))).running() as url:
            environment = {**environment, "LOCAL_API_URL": url}
            subprocess.run([PROGRAM, "ask", "ping"], env=environment, stdout=theirs, check=True)
            done = run("ask", "ping", environment=environment)
        os.close(theirs)
        assert os.read(ours, 1000).decode() == "\\x1b]0;title\\x07a\tb\r\r\n\u3000x\r\n"
        assert done.stdout == "\x1b]0;title\x07a\tb\r\n\u3000x\n".replace("\r\n", "\n")  # as Python reads it

    def test_notes_are_no_part_of_the_answer(self, environment: dict[str, str]) -> None:
        with FakeEngine(events(piece("half of"), piece("", "length"))).running() as url:
            done = run("ask", "ping", environment={**environment, "LOCAL_API_URL": url})
        assert (done.returncode, done.stdout) == (0, "half of\n")
        assert done.stderr.startswith("[Cut off after")

    def test_a_failure_is_on_stderr_and_exits_with_1(self, environment: dict[str, str]) -> None:
        done = run("ask", "--model", "another", "ping", environment=environment)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"There is no model 'another'. Known: {MODEL}.\n"
        done = run("ask", "--tool", "dance", "ping", environment=environment)
        assert (done.returncode, done.stdout) == (1, "")
        assert "There is no tool 'dance'. Known: list_models, chat," in done.stderr
        done = run("ask", "--json", "--model", "another", "ping", environment=environment)
        assert done.returncode == 1
        assert json.loads(done.stdout)["isError"] is True

    def test_settings_can_be_a_servers_or_of_stdio(self, engine: str, tmp_path: Path) -> None:
        (tmp_path / "engine-key").write_text(ENGINE_KEY)
        content = configuration(8080, engine)
        for part in (content, {"models": content["models"]}):
            config = file(tmp_path, part)
            done = run("ask", "--config", config, "ping", environment={"CREDENTIALS_DIRECTORY": str(tmp_path)})
            assert (done.returncode, done.stdout) == (0, "pong\n"), done.stderr


class TestConfigCheck:
    """What is checked beyond the settings' own file, of which test_config tells."""

    def test_the_environment_is_checked_without_a_file(self) -> None:
        done = run("config", "check", environment={})
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        done = run("config", "check", environment={"LOCAL_LLM_EXECUTE_PYTHON": "yes"})
        assert done.returncode == 2
        assert "LOCAL_LLM_EXECUTE_PYTHON: found 'yes'; wanted 1" in done.stderr

    def test_json_says_the_same(self, tmp_path: Path) -> None:
        good = configuration(8080, "http://model1:8000")
        config = file(tmp_path, good)
        done = run("config", "check", config, "--json", environment={})
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == {"settings": config, "ok": True, "problem": None}
        file(tmp_path, {**good, "timeout_s": 0})
        done = run("config", "check", config, "--json", environment={})
        assert done.returncode == 2
        assert json.loads(done.stdout)["problem"].startswith(f"{config}: timeout_s: found 0")

    def test_a_file_for_stdio_is_told_from_one_for_serve(self, tmp_path: Path) -> None:
        models = [{"name": "coder", "url": "http://model1:8000", "context": 4096}]
        config = file(tmp_path, {"models": models})
        done = run("config", "check", config, environment={})
        assert (done.returncode, done.stdout) == (0, f"{config}: good for stdio; serve wants developers, too\n")
        file(tmp_path, {"models": models, "listen": {"port": 8080}})
        done = run("config", "check", config, environment={})
        assert done.returncode == 2
        assert "developers: missing" in done.stderr

    def test_tools_are_checked_even_where_there_is_no_sandbox(self, tmp_path: Path) -> None:
        folder = tmp_path / "tools"
        folder.mkdir()
        tool = {"name": "greet", "description": "Greet", "template": "Hello", "tools": ["execute_python"]}
        path = file(folder, tool, "greet.yml")
        good = configuration(
            8080, "http://model1:8000", tools_dir=str(folder), execute_python={"sandbox": "systemd", "socket": "/no"}
        )
        done = run("config", "check", file(tmp_path, good), environment={"PATH": "/nonexistent"})
        assert (done.returncode, done.stderr) == (0, "")
        done = run("config", "check", file(tmp_path, {**good, "execute_python": None}), environment={})
        assert done.returncode == 2
        assert f"{path}: line" in done.stderr
        assert "found 'execute_python'; the model may be given" in done.stderr

    def test_names_of_tools_are_checked_without_tools_of_ones_own(self, tmp_path: Path) -> None:
        config = file(tmp_path, configuration(8080, "http://m:1", max_tokens={"nope": 500}))
        done = run("config", "check", config, environment={})
        assert done.returncode == 2
        assert "max_tokens: found nope" in done.stderr

    def test_the_tokens_file_is_checked(self, tmp_path: Path) -> None:
        (tmp_path / "tokens.yml").write_text("nobody")
        config = file(tmp_path, configuration(8080, "http://m:1", tokens_file=str(tmp_path / "tokens.yml")))
        done = run("config", "check", config, environment={})
        assert done.returncode == 2
        assert f"{tmp_path}/tokens.yml: the file: " in done.stderr


def test_stdio_takes_its_settings_from_a_file(engine: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(ENGINE_KEY)
    models = [{"name": MODEL, "url": engine, "context": 2048, "api_key_file": str(tmp_path / "key")}]
    call = {"name": "chat", "arguments": {"message": "ping"}}
    line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}) + "\n"
    done = run("stdio", "--config", file(tmp_path, {"models": models}), environment={}, text=line)
    assert done.returncode == 0
    assert json.loads(done.stdout)["result"]["content"][0]["text"] == "pong"


def test_stdio_needs_no_arguments_and_no_parser_for_them() -> None:
    line = '{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}\n'
    replies, done = piped(line, PYTHONPROFILEIMPORTTIME="1")
    assert "tools" in replies[0]["result"]
    imported = {text.rpartition("|")[2].strip() for text in done.stderr.splitlines() if text.startswith("import time:")}
    assert "local_llm_bridge.server.stdio" in imported
    assert not imported & {
        "argparse",
        "local_llm_bridge.doctor",
        "local_llm_bridge.tokens",
        "local_llm_bridge.claude_code",
    }


@pytest.mark.parametrize("name", ["local-llm-bridge", "mcp-server-openai"])
def test_help_shows_the_name_it_was_called_by(name: str) -> None:
    program = str(Path(PROGRAM).with_name(name))
    for command in ([], ["doctor"], ["ask"], ["token", "new"], ["config", "check"], ["stdio"], ["serve"]):
        done = run(*command, "--help", environment={}, program=program)
        assert done.returncode == 0
        assert done.stdout.startswith(f"usage: {' '.join([name, *command])} [-h]")
        assert "examples:\n  " in done.stdout
        assert name in done.stdout.partition("examples:")[2]
    done = run("--help", environment={}, program=program)
    for variable in ("LOCAL_API_URL", "OPENAI_MAX_RETRIES", "LOCAL_LLM_TOOLS_DIR", "LOCAL_LLM_EXECUTE_PYTHON"):
        assert variable in done.stdout


def test_the_module_is_the_same_program() -> None:
    done = run("-m", "local_llm_bridge", "--help", environment={}, program=sys.executable)
    assert done.stdout.startswith("usage: local-llm-bridge [-h]")


def test_a_reader_that_has_gone_is_no_crash(environment: dict[str, str]) -> None:
    command = f"{PROGRAM} doctor | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert done.stdout.startswith("ok    settings: ")
    assert done.stderr == ""


def test_a_command_that_there_is_not_is_refused() -> None:
    done = run("dance", environment={})
    assert done.returncode == 2
    assert "choose from" in done.stderr


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/etc/passwd", "audit_socket: /etc/passwd is no socket"),
        ("/etc", "audit_socket: /etc is no socket"),
        ("/run/" + "x" * 103, "wanted a path from / of 107 bytes at most"),
        ("run/audit", "wanted a path from / of 107 bytes at most"),
        ("/run/a\0b", "wanted a path from / of 107 bytes at most"),
        ("/nonexistent/socket", ""),
    ],
)
def test_config_check_looks_at_the_audit_socket(tmp_path: Path, path: str, said: str) -> None:
    config = file(tmp_path, configuration(8080, "http://model1:8000", audit_socket=path))
    done = run("config", "check", config, environment={})
    assert (done.returncode, done.stderr == "") == ((2, False) if said else (0, True))
    assert said in done.stderr
