"""Gateway mode of the claude_code role: Claude Code itself on the local model; real files, and a gateway with TLS."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import claude_code_config as config
import claude_code_status as status
import pytest
from ansible.module_utils.claude_code_gateway import problem_of
from ansible.module_utils.claude_code_home import Home
from ansible.module_utils.claude_code_managed import Managed
from ansible.module_utils.home_files import Account, ConfigError

TOKEN = "s3cr3t-Token.42"  # noqa: S105
GATEWAY = {
    "url": "https://llm.example.com/",
    "model": "qwen3-coder",
    "models": {},
    "context": 65536,
    "max_output": 8192,
    "thinking": False,
}
SETTINGS = '{"env": {"EDITOR": "vi", "ANTHROPIC_MODEL": "opus"}, "apiKeyHelper": "vault read key", "model": "opus"}'
FILES = (".claude.json", ".claude/settings.json")
OWN = ".config/local-llm-fleet"


@pytest.fixture
def account(tmp_path: Path) -> Account:
    home = tmp_path / "home"
    home.mkdir()
    return Account("dev", os.getuid(), os.getgid(), home, "/bin/sh")


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a private CA (ca.pem), and a certificate of it for localhost (gateway.pem, with the key)."""
    folder = tmp_path_factory.mktemp("ca")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    commands: list[list[str]] = [
        [*key, "-x509", "-subj", "/CN=a CA of this test", "-keyout", "ca.key", "-out", "ca.pem"],
        [
            *key,
            *["-x509", "-CA", "ca.pem", "-CAkey", "ca.key", "-subj", "/CN=localhost"],
            *["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:false"],
            *["-keyout", "gateway.key", "-out", "gateway.crt"],
        ],
    ]
    for command in commands:
        subprocess.run(["openssl", "req", *command], cwd=folder, check=True, capture_output=True)
    (folder / "gateway.pem").write_text((folder / "gateway.crt").read_text() + (folder / "gateway.key").read_text())
    return folder


def params(**changes: Any) -> dict[str, Any]:
    return {
        "state": "present",
        "server_name": "local-llm",
        "servers": [],
        "url": "https://llm.example.com/mcp",
        "stdio_command": "/bin/true",
        "stdio_env": {},
        "timeout_ms": 600000,
        "gateway": GATEWAY,
        "ca_certificate": "",
        "permissions": ["mcp__local-llm"],
        "settings": {},
        "managed": False,
        "managed_servers_only": False,
        **changes,
    }


def plan(account: Account, *modes: str, transport: str = "http", **changes: Any) -> Home:
    options = {"token": TOKEN, "transport": transport, "modes": list(modes)}
    return Home(account, options, params(**changes), False)


def apply(account: Account, *modes: str, **changes: Any) -> Home:
    home = plan(account, *modes, **changes)
    home.write()
    return home


def read(account: Account, file: str) -> Any:
    return json.loads((account.home / file).read_text())


def put_settings(account: Account, text: str) -> None:
    (account.home / ".claude").mkdir()
    (account.home / ".claude/settings.json").write_text(text)


class TestSettings:
    """What Claude Code is told so that it runs on the local model."""

    def test_alone_it_needs_no_mcp_server_and_no_permission(self, account: Account) -> None:
        apply(account, "gateway")
        assert not (account.home / ".claude.json").exists()
        assert read(account, ".claude/settings.json") == {
            "apiKeyHelper": f"cat {account.home}/{OWN}/local-llm.token",
            "env": {
                "ANTHROPIC_BASE_URL": "https://llm.example.com",
                "ANTHROPIC_MODEL": "qwen3-coder",
                "ANTHROPIC_DEFAULT_OPUS_MODEL": "qwen3-coder",
                "ANTHROPIC_DEFAULT_SONNET_MODEL": "qwen3-coder",
                "ANTHROPIC_DEFAULT_HAIKU_MODEL": "qwen3-coder",
                "ANTHROPIC_DEFAULT_FABLE_MODEL": "qwen3-coder",
                "CLAUDE_CODE_MAX_CONTEXT_TOKENS": "65536",
                "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "8192",
                "CLAUDE_CODE_DISABLE_1M_CONTEXT": "1",
                "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
                "CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS": "1",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL": "1",
                "CLAUDE_CODE_DISABLE_THINKING": "1",
            },
            "permissions": {"deny": ["WebSearch"], "disableAutoMode": "disable"},
            "skipWebFetchPreflight": True,
        }

    def test_the_key_helper_prints_the_token_whatever_the_home_is_called(self, account: Account) -> None:
        home = account.home / "a home with 'quotes' and $signs"
        home.mkdir()
        account = Account("dev", account.uid, account.gid, home, "/bin/sh")
        apply(account, "gateway")
        helper = read(account, ".claude/settings.json")["apiKeyHelper"]
        assert subprocess.check_output(["/bin/sh", "-c", helper], env={}, text=True).strip() == TOKEN

    def test_models_of_the_aliases_and_thinking(self, account: Account) -> None:
        models = {"opus": "deepseek", "haiku": "tiny"}
        apply(account, "gateway", gateway={**GATEWAY, "models": models, "thinking": True})
        environment = read(account, ".claude/settings.json")["env"]
        assert [environment[f"ANTHROPIC_DEFAULT_{alias}_MODEL"] for alias in ("OPUS", "SONNET", "HAIKU")] == [
            "deepseek",
            "qwen3-coder",
            "tiny",
        ]
        assert "CLAUDE_CODE_DISABLE_THINKING" not in environment

    def test_the_operators_own_settings_win(self, account: Account) -> None:
        apply(account, "gateway", settings={"env": {"ANTHROPIC_MODEL": "mine"}})
        assert read(account, ".claude/settings.json")["env"]["ANTHROPIC_MODEL"] == "mine"

    def test_both_modes_share_one_token_file(self, account: Account) -> None:
        apply(account, "tools", "gateway")
        assert "local-llm" in read(account, ".claude.json")["mcpServers"]
        holders = [path for path in account.home.rglob("*") if path.is_file() and TOKEN in path.read_text()]
        assert holders == [account.home / OWN / "local-llm.token"]

    def test_going_back_to_tools_gives_back_what_the_developer_had(self, account: Account) -> None:
        put_settings(account, SETTINGS)
        apply(account, "tools", "gateway")
        assert read(account, ".claude/settings.json")["apiKeyHelper"].startswith("cat ")
        apply(account, "tools")
        assert read(account, ".claude/settings.json") == {
            **json.loads(SETTINGS),
            "permissions": {"allow": ["mcp__local-llm"]},
        }
        apply(account, "gateway")
        assert not (account.home / ".claude.json").exists()

    @pytest.mark.parametrize(
        "had",
        [
            {"permissions": {"deny": ["WebSearch", "Bash(rm:*)"]}},
            {"permissions": {"deny": ["Bash(rm:*)"], "defaultMode": "auto"}, "skipWebFetchPreflight": False},
            {"env": {"CLAUDE_CODE_DISABLE_1M_CONTEXT": "0"}, "skipWebFetchPreflight": True},
        ],
    )
    def test_what_a_developer_had_set_of_it_comes_back_with_tools_mode(
        self, account: Account, had: dict[str, Any]
    ) -> None:
        put_settings(account, json.dumps(had))
        apply(account, "gateway")
        has = read(account, ".claude/settings.json")
        assert "WebSearch" in has["permissions"]["deny"]
        assert (has["permissions"]["disableAutoMode"], has["skipWebFetchPreflight"]) == ("disable", True)
        assert has["env"]["CLAUDE_CODE_DISABLE_1M_CONTEXT"] == "1"
        apply(account, "tools", permissions=[])
        assert read(account, ".claude/settings.json") == had

    def test_what_a_developer_has_changed_of_it_stays(self, account: Account) -> None:
        apply(account, "gateway")
        has = read(account, ".claude/settings.json")
        has["skipWebFetchPreflight"] = False
        has["permissions"]["deny"].append("WebFetch")
        (account.home / ".claude/settings.json").write_text(json.dumps(has))
        apply(account, state="absent")
        assert read(account, ".claude/settings.json") == {
            "permissions": {"deny": ["WebFetch"]},
            "skipWebFetchPreflight": False,
        }

    def test_absent_takes_out_exactly_what_was_added(self, account: Account, ca: Path) -> None:
        put_settings(account, SETTINGS)
        apply(account, "tools", "gateway", ca_certificate=(ca / "ca.pem").read_text())
        apply(account, state="absent")
        assert {str(path.relative_to(account.home)) for path in account.home.rglob("*") if path.is_file()} == {
            ".claude/settings.json"
        }
        assert (account.home / ".claude/settings.json").read_text() == SETTINGS

    def test_a_second_run_changes_nothing(self, account: Account, ca: Path) -> None:
        certificate = (ca / "ca.pem").read_text()
        assert apply(account, "tools", "gateway", ca_certificate=certificate).changed
        again = plan(account, "tools", "gateway", ca_certificate=certificate)
        assert (again.changed, again.diff()) == ([], [])


class TestCertificateAuthority:
    """A private CA that Claude Code, or a bridge that it starts, shall trust."""

    def test_claude_code_is_told_of_a_private_file(self, account: Account, ca: Path) -> None:
        apply(account, "tools", ca_certificate=(ca / "ca.pem").read_text())
        path = Path(read(account, ".claude/settings.json")["env"]["NODE_EXTRA_CA_CERTS"])
        assert path == account.home / OWN / "local-llm-ca.pem"
        assert path.read_text() == (ca / "ca.pem").read_text()
        apply(account, "tools")
        assert not path.exists()
        assert "env" not in read(account, ".claude/settings.json")

    def test_a_ca_that_the_developer_has_set_stays_trusted(self, account: Account, ca: Path) -> None:
        own = account.home / "company.pem"
        own.write_text("the company's own\n")
        put_settings(account, json.dumps({"env": {"NODE_EXTRA_CA_CERTS": str(own)}}))
        certificate = (ca / "ca.pem").read_text()
        apply(account, "tools", ca_certificate=certificate)
        path = account.home / OWN / "local-llm-ca.pem"
        assert path.read_text() == certificate + "the company's own\n"
        assert plan(account, "tools", ca_certificate=certificate).changed == []
        apply(account, state="absent")
        assert read(account, ".claude/settings.json")["env"] == {"NODE_EXTRA_CA_CERTS": str(own)}

    @pytest.mark.parametrize(("url", "told"), [("https://llm.example.com/v1", True), ("http://127.0.0.1/v1", False)])
    def test_a_bridge_is_told_if_it_needs_it(self, account: Account, ca: Path, url: str, told: bool) -> None:
        changes = {"ca_certificate": (ca / "ca.pem").read_text(), "stdio_env": {"OPENAI_BASE_URL": url}}
        apply(account, "tools", transport="stdio", **changes)
        environment = read(account, ".claude.json")["mcpServers"]["local-llm"]["env"]
        assert environment.get("SSL_CERT_FILE") == (f"{account.home}/{OWN}/local-llm-ca.pem" if told else None)

    @pytest.mark.parametrize(
        ("certificate", "message"),
        [
            ("/etc/ssl/ca.pem", r"ca_certificate: expected the text of a PEM file, .* begins with '/etc/ssl/ca\.pem'"),
            (" ", "expected the text of a PEM file"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "expected the text of a PEM file"),
            ("-----BEGIN EC PRIVATE KEY-----\nAAAA\n", "holds a private key; give the CA's certificate alone"),
        ],
    )
    def test_other_texts_are_refused(self, account: Account, certificate: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            plan(account, "tools", ca_certificate=certificate)


class TestServers:
    """Several MCP servers, one for each model."""

    SERVERS = ({"name": "local-qwen", "model": "qwen3-coder"}, {"name": "local-deepseek", "model": "deepseek-v3.1"})

    def test_each_has_its_model_over_http(self, account: Account) -> None:
        apply(account, "tools", servers=[*self.SERVERS, {"name": "local-llm"}, {"name": "x", "model": "Org/B&C 1"}])
        servers = read(account, ".claude.json")["mcpServers"]
        assert {name: server["url"] for name, server in servers.items()} == {
            "local-qwen": "https://llm.example.com/mcp?model=qwen3-coder",
            "local-deepseek": "https://llm.example.com/mcp?model=deepseek-v3.1",
            "local-llm": "https://llm.example.com/mcp",
            "x": "https://llm.example.com/mcp?model=Org%2FB%26C%201",
        }

    def test_each_has_its_model_over_stdio(self, account: Account) -> None:
        apply(account, "tools", transport="stdio", servers=list(self.SERVERS), stdio_env={"OPENAI_MODEL": "other"})
        servers = read(account, ".claude.json")["mcpServers"]
        assert {name: server["env"]["OPENAI_MODEL"] for name, server in servers.items()} == {
            "local-qwen": "qwen3-coder",
            "local-deepseek": "deepseek-v3.1",
        }

    def test_one_that_is_taken_off_the_list_goes(self, account: Account) -> None:
        apply(account, "tools", transport="stdio", servers=list(self.SERVERS))
        apply(account, "tools", transport="stdio", servers=[self.SERVERS[1]])
        assert list(read(account, ".claude.json")["mcpServers"]) == ["local-deepseek"]

    @pytest.mark.parametrize(
        ("servers", "message"),
        [
            ([{"name": "a"}, {"name": "a"}], "'a' is listed more than once"),
            ([{"name": "a b"}], "expected a name of letters, digits, - and _, found 'a b'"),
        ],
    )
    def test_refusals(self, account: Account, servers: list[dict[str, str]], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            plan(account, "tools", servers=servers)


class TestRefusals:
    """What is refused before anything is written."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"url": ""}, r"gateway\.url: expected an address like https://llm\.example\.com, found ''"),
            ({"url": "https://me:pw@x"}, r"gateway\.url: must not hold a user or a password"),
            ({"url": "https://x/v1/"}, "Claude Code adds /v1/messages itself; take /v1 off"),
            ({"model": ""}, r"gateway\.model: expected the name of a model"),
            ({"context": 32767}, "needs 24576 tokens for its first request .* found a context of 32767 and 8192"),
            ({"max_output": 0}, r"gateway\.context: Claude Code needs 24576 tokens"),
        ],
    )
    def test_gateway(self, account: Account, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            plan(account, "gateway", gateway={**GATEWAY, **change})

    def test_no_mode(self, account: Account) -> None:
        with pytest.raises(ConfigError, match="modes: expected tools, gateway or both, found none"):
            plan(account)

    def test_a_key_of_the_developers_own_is_not_sent_to_the_gateway(self, account: Account) -> None:
        put_settings(account, '{"env": {"ANTHROPIC_API_KEY": "sk-ant-secret"}}')
        with pytest.raises(
            ConfigError, match=r"settings\.json: env\.ANTHROPIC_API_KEY goes before the token"
        ) as refusal:
            plan(account, "tools", "gateway")
        assert "sk-ant" not in str(refusal.value)
        assert plan(account, "tools").changed

    def test_operators_settings_of_another_kind(self, account: Account) -> None:
        with pytest.raises(ConfigError, match="settings: env: expected a string, found an object"):
            plan(account, "gateway", settings={"env": "none"})


class TestManaged:
    """Settings for all users of a host."""

    DEVELOPERS = ({"user": "a", "transport": "http", "modes": ["tools", "gateway"]},)

    def manage(self, folder: Path, **changes: Any) -> Managed:
        return Managed(params(**{"managed": True, "developers": list(self.DEVELOPERS), **changes}), folder)

    def test_everybody_gets_the_settings_and_nobody_the_secret(self, tmp_path: Path, ca: Path) -> None:
        folder = tmp_path / "claude-code"
        managed = self.manage(folder, ca_certificate=(ca / "ca.pem").read_text())
        managed.write()
        file = folder / "managed-settings.d/local-llm.json"
        settings = json.loads(file.read_text())
        assert settings["env"]["ANTHROPIC_BASE_URL"] == "https://llm.example.com"
        assert Path(settings["env"]["NODE_EXTRA_CA_CERTS"]).read_text() == (ca / "ca.pem").read_text()
        assert settings["permissions"] == {
            "deny": ["WebSearch"],
            "disableAutoMode": "disable",
            "allow": ["mcp__local-llm"],
        }
        assert {path.stat().st_mode & 0o777 for path in (folder, file.parent)} == {0o755}
        assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o644}
        assert self.manage(folder, ca_certificate=(ca / "ca.pem").read_text()).changed == []

    def test_the_key_helper_reads_the_file_of_whoever_runs_it(self, tmp_path: Path, account: Account) -> None:
        apply(account, "tools", "gateway", managed=True)
        self.manage(tmp_path / "managed").write()
        helper = json.loads((tmp_path / "managed/managed-settings.d/local-llm.json").read_text())["apiKeyHelper"]
        environment = {"HOME": str(account.home)}
        assert subprocess.check_output(["/bin/sh", "-c", helper], env=environment, text=True).strip() == TOKEN

    def test_the_developers_own_settings_are_left_alone(self, account: Account) -> None:
        apply(account, "tools", "gateway", managed=True)
        assert not (account.home / ".claude").exists()
        assert "local-llm" in read(account, ".claude.json")["mcpServers"]

    def test_other_servers_can_be_shut_out(self, tmp_path: Path) -> None:
        developers = [*self.DEVELOPERS, {**self.DEVELOPERS[0], "transport": "stdio"}]
        self.manage(tmp_path, managed_servers_only=True, developers=developers).write()
        settings = json.loads((tmp_path / "managed-settings.d/local-llm.json").read_text())
        assert settings["allowManagedMcpServersOnly"] is True
        assert settings["allowedMcpServers"] == [
            {"serverUrl": "https://llm.example.com/*"},
            {"serverCommand": ["/bin/true"]},
        ]

    def test_what_was_made_goes_and_what_others_made_stays(self, tmp_path: Path, ca: Path) -> None:
        folder = tmp_path / "claude-code"
        certificate = (ca / "ca.pem").read_text()
        self.manage(folder, ca_certificate=certificate).write()
        (folder / "managed-settings.json").write_text("{}")
        self.manage(folder, managed=False).write()
        assert list(folder.iterdir()) == [folder / "managed-settings.json"]
        (folder / "managed-settings.json").unlink()
        self.manage(folder).write()
        self.manage(folder, state="absent").write()
        assert not folder.exists()

    def test_absence_of_one_developer_leaves_it(self, tmp_path: Path) -> None:
        self.manage(tmp_path).write()
        assert self.manage(tmp_path, state="absent", managed=False).changed == []

    def test_developers_with_different_modes_are_refused(self, tmp_path: Path) -> None:
        developers = [*self.DEVELOPERS, {**self.DEVELOPERS[0], "modes": ["tools"]}]
        with pytest.raises(ConfigError, match="all its developers need the same modes"):
            self.manage(tmp_path, developers=developers)


class _Gateway(BaseHTTPRequestHandler):
    """A stand-in of the gateway: one token, one model."""

    def log_message(self, *args: Any) -> None:
        """Write no access log."""

    def do_GET(self) -> None:
        """Answer as an OpenAI-compatible server does."""
        known = self.headers["Authorization"] == f"Bearer {TOKEN}"
        code = 404 if self.path != "/v1/models" else 200 if known else 401
        body = {"data": [{"id": "qwen3-coder"}]} if code == 200 else {"error": "no"}
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


@pytest.fixture
def gateway(ca: Path) -> Iterator[str]:
    """The address of a running gateway with TLS."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Gateway)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca / "gateway.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"https://localhost:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


class TestQuestion:
    """What the role asks the gateway when all is configured."""

    def test_all_is_well(self, gateway: str, ca: Path) -> None:
        assert problem_of(gateway, ["qwen3-coder"], TOKEN, ca / "ca.pem") == ""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"token": "another"}, '/v1/models answers 401: it does not know this developer\'s token.*{"error": "no"}'),
            ({"models": ["qwen3-coder", "gpt-4"]}, "does not list the model 'gpt-4'; it has: qwen3-coder"),
            ({"ca_file": Path("/nonexistent")}, "its certificate is not trusted .*; give the CA that has signed it"),
            ({"path": "/llm"}, "answers 404: this is no gateway to a model"),
            ({"url": "https://127.0.0.1:9"}, "cannot be reached: connection refused; is the gateway running"),
            ({"url": "https://gateway.invalid"}, "cannot be reached: its name is not known here"),
        ],
    )
    def test_problems(self, gateway: str, ca: Path, change: dict[str, Any], message: str) -> None:
        asked = {"url": gateway, "models": ["qwen3-coder"], "token": TOKEN, "ca_file": ca / "ca.pem", **change}
        asked["url"] += asked.pop("path", "")
        problem = problem_of(**asked)
        with pytest.raises(ConfigError, match=message):
            raise ConfigError(problem)
        assert TOKEN not in problem

    def test_the_token_and_the_ca_are_those_in_the_developers_files(
        self, gateway: str, ca: Path, account: Account
    ) -> None:
        asked = {"server_name": "local-llm", "gateway_url": gateway, "gateway_models": ["qwen3-coder"]}
        assert "No such file or directory; configure Claude Code first" in status.ask_gateway(account, asked)
        apply(account, "gateway", ca_certificate=(ca / "ca.pem").read_text())
        assert status.ask_gateway(account, asked) == ""


def test_a_mistake_in_the_managed_settings_is_told_before_any_home_is_read() -> None:
    developers = [{"user": "nobody-1", "token": "t", "transport": "http", "modes": ["gateway"]}]
    with pytest.raises(ConfigError, match=r"gateway\.model: expected the name of a model"):
        config.plan_all(params(managed=True, developers=developers, gateway={**GATEWAY, "model": ""}), False)
