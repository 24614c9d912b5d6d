"""Descriptors, folder, encoding or input of the process are broken: it says so in a sentence, and ends."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest

from local_llm_bridge.server.stdio import LONGEST_LINE
from local_llm_bridge.standard_streams import LONGEST_TEXT, decode
from tests.services import MODEL, PROGRAM, FakeEngine, events, free_port, piece, serving

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

ANSWER = "你好 😀"
PING = b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n'
PONG = b'{"jsonrpc":"2.0","id":1,"result":{}}\n'
CLOSED = [" ".join(which) for count in (1, 2, 3) for which in combinations(("<&-", ">&-", "2>&-"), count)]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with FakeEngine(events(piece(ANSWER), piece("", "stop"))).running() as address:
        yield address


def shell(
    script: str,
    *,
    url: str = "",
    data: bytes = b"",
    cwd: Path | None = None,
    environment: Mapping[str, str | bytes] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a shell's line in which $B is the program. However it ends, it ends by itself and without a traceback."""
    settings = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "B": PROGRAM, "MODEL_NAME": MODEL}
    done = subprocess.run(
        ["sh", "-c", script],
        input=data,
        capture_output=True,
        timeout=60,
        check=False,
        cwd=cwd,
        env={**settings, "LOCAL_API_URL": url, **(environment or {})},
    )
    assert done.returncode in {0, 1, 2}, done
    for words in (b"Traceback", b"Exception ignored", b"Aborted"):
        assert words not in done.stdout + done.stderr, done
    return done


def sentence(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return what a command that failed said: one line."""
    assert done.returncode in {1, 2}, done
    assert done.stdout == b""
    match = re.fullmatch(r"local-llm-bridge: (.+)\n", done.stderr.decode())
    assert match, done.stderr
    return match[1]


class TestDescriptors:
    """They are closed, full, or of the wrong kind."""

    @pytest.mark.parametrize("closed", CLOSED)
    def test_stdio_answers_or_says_which_is_closed(self, closed: str) -> None:
        done = shell(f"exec $B {closed}", data=PING)
        if closed == "2>&-":
            assert (done.returncode, done.stdout) == (0, PONG)
            return
        assert done.returncode == 1
        if "2>&-" not in closed:
            which = "input" if "<&-" in closed else "output"
            assert f"standard {which} is closed" in sentence(done)

    @pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
    @pytest.mark.parametrize("command", ["ask -", "doctor"])
    def test_other_commands_end_too(self, url: str, command: str, closed: str) -> None:
        shell(f"exec $B {command} {closed}", url=url, data=b"hi")

    @pytest.mark.parametrize("closed", ["<&- >&-", "<&- >&- 2>&-"])
    def test_the_service_runs_without_any(self, url: str, tmp_path: Path, closed: str) -> None:
        with serving(tmp_path, url) as bridge:
            port = free_port()
            config = tmp_path / "config.yml"
            config.write_text(config.read_text().replace(f"port: {bridge.port}", f"port: {port}"))
        get = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())"
        done = shell(
            f"$B serve --config {config} {closed} & until python3 -c '{get}' http://127.0.0.1:{port}/healthz; "
            "do sleep 0.2; done 2>/dev/null; kill $!; wait $!; echo exit code $?",
            environment={"CREDENTIALS_DIRECTORY": str(tmp_path)},
        )
        assert done.stdout.splitlines()[-1] == b"exit code 0"

    def test_what_is_logged_never_gets_into_the_answers(self, url: str) -> None:
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "chat", "arguments": {}}}
        done = shell("exec $B 2>&-", url=url, data=json.dumps(call).encode() + b"\n")
        assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [1]

    @pytest.mark.parametrize("command", ["", "ask hi", "doctor --json", "doctor", "--help", "config check --json"])
    def test_a_full_disk(self, url: str, command: str) -> None:
        done = shell(f"exec $B {command} >/dev/full", url=url, data=PING)
        assert sentence(done) == "standard output cannot be written: No space left on device"
        shell(f"exec $B {command} >/dev/full 2>/dev/full", url=url, data=PING)

    @pytest.mark.parametrize("command", ["ask hi", "doctor", "doctor --json", "--help"])
    def test_nobody_reads_the_output(self, url: str, command: str) -> None:
        done = shell(f"($B {command}; echo exit code $? >&2) | true", url=url)
        assert done.stderr == b"exit code 1\n"

    @pytest.mark.parametrize(
        ("redirection", "said"),
        [
            ("0>/dev/null", "standard input is open for the other direction only"),
            ("0>&1 | cat >&2", "standard input is open for the other direction only"),
            ("1</dev/null", "standard output is open for the other direction only"),
        ],
    )
    def test_one_that_is_open_the_wrong_way_round(self, redirection: str, said: str) -> None:
        done = shell(f"$B {redirection}", data=PING)
        assert said in done.stderr.decode()

    @pytest.mark.parametrize("command", ["--version", "doctor", "config check"])
    def test_there_is_no_null_device(self, url: str, command: str) -> None:
        program = "import os, sys; os.devnull = '/nonexistent'; from local_llm_bridge.cli import main; sys.exit(main())"
        for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
            shell(f'exec {sys.executable} -c "{program}" {command} {closed}', url=url)

    def test_one_socket_for_both_as_socat_gives(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            environment = {"PATH": os.environ["PATH"]}
            with subprocess.Popen([PROGRAM], stdin=theirs.fileno(), stdout=theirs.fileno(), env=environment) as process:
                theirs.close()
                ours.sendall(PING)
                assert ours.recv(1000) == PONG
                ours.close()
                assert process.wait(10) == 0

    def test_a_token_that_nobody_sees_is_not_kept(self, tmp_path: Path) -> None:
        tokens = tmp_path / "tokens.yml"
        sentence(shell(f"exec $B token new alice --file {tokens} >&-"))
        assert not tokens.exists()
        sentence(shell(f"exec $B token new alice --file {tokens} >/dev/full"))
        assert "alice" not in tokens.read_text()

    def test_a_log_that_nobody_reads_stops_nothing(self) -> None:
        """A pipe holds 64 KiB: a client that starts the bridge with one for stderr and never reads it hung."""
        call = {"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "chat", "arguments": {}}}
        environment = {"PATH": os.environ["PATH"], "LOCAL_API_URL": "http://127.0.0.1:9"}
        pipe = subprocess.PIPE
        with subprocess.Popen([PROGRAM], stdin=pipe, stdout=pipe, stderr=pipe, env=environment) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            for number in range(800):
                process.stdin.write(json.dumps({**call, "id": number}).encode() + b"\n")
                process.stdin.flush()
                assert json.loads(process.stdout.readline())["id"] == number
            process.stdin.close()
            log = process.stderr.read()
            assert process.wait(10) == 0
        assert 200 < log.count(b'"what":"chat"') < 800


class TestSurroundings:
    """The folder, the home, the terminal."""

    @pytest.mark.parametrize("command", ["", "ask hi", "doctor", "config check", "token list --file t.yml"])
    def test_the_working_folder_was_deleted(self, url: str, tmp_path: Path, command: str) -> None:
        folder = tmp_path / "gone"
        folder.mkdir()
        done = shell(f"rmdir {folder}; exec $B {command}", url=url, data=PING, cwd=folder)
        if not command:
            assert (done.returncode, done.stdout) == (0, PONG)
            assert b"the working folder was deleted: tools take no files" in done.stderr

    def test_a_relative_file_in_a_folder_that_was_deleted(self, tmp_path: Path) -> None:
        folder = tmp_path / "gone"
        folder.mkdir()
        said = sentence(shell(f"rmdir {folder}; exec $B token new alice --file t.yml", cwd=folder))
        assert said == "t.yml: cannot be found: No such file or directory; name it from /"

    @pytest.mark.parametrize("home", ["", "/etc/passwd", "/nonexistent", "~", b"/caf\xe9"])
    def test_a_home_that_is_none(self, url: str, home: str | bytes) -> None:
        done = shell("exec $B doctor --json", url=url, environment={"HOME": home})
        assert json.loads(done.stdout)[-1]["check"] == "Claude Code"

    @pytest.mark.parametrize("encoding", ["latin-1", "gbk", "ascii:strict", "cp1252"])
    def test_a_terminal_that_cannot_show_the_answer(self, url: str, encoding: str) -> None:
        done = shell("exec $B ask hi", url=url, environment={"PYTHONIOENCODING": encoding})
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.decode(encoding.partition(":")[0]) in {"?? ?\n", "你好 ?\n"}
        done = shell("exec $B doctor", url=url, environment={"PYTHONIOENCODING": encoding})
        assert b"Claude Code" in done.stdout
        done = shell("exec $B ask --json hi", url=url, environment={"PYTHONIOENCODING": encoding})
        assert json.loads(done.stdout)["content"][0]["text"] == ANSWER

    @pytest.mark.parametrize("locale", [{"LANG": "C"}, {"LC_ALL": "POSIX"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
    def test_a_locale_of_the_seventies(self, url: str, locale: dict[str, str]) -> None:
        done = shell("exec $B ask -", url=url, data="é你".encode(), environment=locale)
        assert (done.returncode, done.stderr) == (0, b"")


class TestInput:
    """It is not UTF-8, not JSON, or without end."""

    @pytest.mark.parametrize(
        ("data", "encoding", "text", "replaced"),
        [
            ("é你".encode(), "ascii", "é你", 0),
            (b"\xef\xbb\xbfhi", "utf-8", "hi", 0),
            ("é你".encode("utf-16"), "utf-8", "é你", 0),
            (b"\xfe\xff\x00h", "utf-8", "h", 0),
            (b"caf\xe9", "utf-8", "caf\ufffd", 1),
            (b"caf\xe9", "ascii", "caf\ufffd", 1),
            (b"caf\xe9", "latin-1", "café", 0),
            ("你".encode("gbk"), "gbk", "你", 0),
            (b"\xff\xff\xff", "gbk", "\ufffd\ufffd\ufffd", 3),
            ("\ufffd".encode() + b"\xe9", "utf-8", "\ufffd\ufffd", 1),
        ],
    )
    def test_bytes_become_text(self, data: bytes, encoding: str, text: str, replaced: int) -> None:
        assert decode(data, encoding) == (text, replaced)

    def test_a_diff_that_is_not_utf8(self) -> None:
        engine = FakeEngine(events(piece("fine"), piece("", "stop")))
        with engine.running() as url:
            done = shell("exec $B ask --tool review_code -", url=url, data=b"-caf\xe9\n")
        assert (done.returncode, done.stdout) == (0, b"fine\n")
        assert done.stderr == (
            b"local-llm-bridge: standard input is not UTF-8: 1 characters of it were replaced by U+FFFD\n"
        )
        assert engine.requests[0]["messages"][-1]["content"].endswith("-caf\ufffd\n")

    def test_a_question_that_is_not_utf8(self) -> None:
        engine = FakeEngine(events(piece("fine"), piece("", "stop")))
        with engine.running() as url:
            assert shell("exec $B ask $(printf 'caf\\351')", url=url).returncode == 0
        assert engine.requests[0]["messages"][-1]["content"] == "caf\ufffd"

    def test_standard_input_without_end(self) -> None:
        said = sentence(shell("exec $B ask - </dev/zero"))
        assert said.startswith(f"standard input has more than {LONGEST_TEXT >> 20} MiB")
        done = shell("exec $B </dev/zero")
        assert done.returncode == 0
        assert f"a line is longer than {LONGEST_LINE} bytes" in done.stderr.decode()

    @pytest.mark.parametrize("name", ["MODEL_NAME", "LOCAL_API_URL"])
    def test_a_setting_that_is_not_utf8(self, name: str) -> None:
        said = sentence(shell("exec $B", environment={name: b"http://caf\xe9"}))
        assert said.startswith(f"{name}: found 'http://caf")
        assert said.endswith("which is not UTF-8 text")

    @pytest.mark.parametrize(
        "content", [b"models: [caf\xe9]\n", "models: []\n".encode("utf-16"), b"\0", b"\xef\xbb\xbf"]
    )
    @pytest.mark.parametrize("command", ["config check", "stdio --config", "serve --config", "token list --file"])
    def test_a_file_that_is_not_text(self, tmp_path: Path, command: str, content: bytes) -> None:
        (tmp_path / "file.yml").write_bytes(content)
        done = shell(f"exec $B {command} {tmp_path}/file.yml", data=PING)
        if done.returncode or command != "token list --file":
            assert sentence(done).startswith(f"{tmp_path}/file.yml: ")

    @pytest.mark.parametrize(
        ("line", "code", "said"),
        [
            (b"hello", -32700, "not valid JSON"),
            (b'{"jsonrpc": "2.0", "id"', -32700, "not valid JSON"),
            (b'{"jsonrpc": "2.0", "id": 1, "method": "caf\xe9"}', -32700, "not UTF-8"),
            (PING.decode().strip().encode("utf-16"), -32700, "not UTF-8"),
            (b"[" + PING.strip() + b"]", -32600, "no batches"),
            (b"[]", -32600, "no batches"),
            (b"5", -32600, "wanted a message such as"),
            (b'"ping"', -32600, "wanted a message such as"),
            (b"null", -32600, "wanted a message such as"),
            (b"NaN", -32700, "it has no NaN"),
            (PING.strip().replace(b"1,", b'1, "id": 2,'), -32600, "the same key twice"),
            (PING.strip().replace(b"1,", b'1, "params": {"x": -Infinity},'), -32700, "it has no -Infinity"),
            (PING.strip().replace(b"ping", b"p\\ud83d"), -32600, "half of a surrogate pair"),
        ],
    )
    def test_a_line_that_is_no_message(self, line: bytes, code: int, said: str) -> None:
        done = shell("exec $B", data=PING + line)  # the end of the input ends the line, too
        reply: dict[str, Any]
        _, reply = (json.loads(text) for text in done.stdout.splitlines())
        assert reply["id"] == (1 if "surrogate" in said else None)
        assert reply["error"]["code"] == code
        assert said in reply["error"]["message"]

    @pytest.mark.parametrize(
        ("written", "answered"),
        [("1.0", 1), ("-0.0", 0), ('"1.0"', "1.0"), ("1.5", None), ("1e308", None), ("true", None), ("null", None),
         ("{}", None), ("[1]", None), ("NaN", None)],
    )  # fmt: skip
    def test_an_id_that_is_none_is_answered_too(self, written: str, answered: float | str | None) -> None:
        line = f'{{"jsonrpc": "2.0", "id": {written}, "method": "ping"}}\n'
        (reply,) = map(json.loads, shell("exec $B", data=line.encode()).stdout.splitlines())
        assert reply["id"] == answered
        code = -32700 if written == "NaN" else -32600
        assert ("result" in reply) if answered is not None else (reply["error"]["code"] == code)

    def test_a_ping_first_says_nothing_of_what_comes(self) -> None:
        listing = PING.replace(b"ping", b"tools/list").replace(
            b"1,", b'2, "params": {"_meta": {"progressToken": null}},'
        )
        done = shell("exec $B", data=PING + listing + PING)
        replies = [json.loads(line) for line in done.stdout.splitlines()]
        assert [(reply["id"], "result" in reply) for reply in replies] == [(1, True), (2, True), (1, True)]

    def test_powershell_begins_with_a_byte_order_mark(self) -> None:
        done = shell("exec $B", data=(b"\xef\xbb\xbf" + PING.replace(b"\n", b"\r\n")) * 2)
        assert (done.returncode, done.stdout) == (0, PONG * 2)
