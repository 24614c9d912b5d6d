"""Files for a call: what is read, and what is refused by name, with what to do about it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_llm_bridge.errors import RefusedFileError
from local_llm_bridge.tools.files import MOST_BYTES, MOST_FILES, read_files

OUTSIDE = "text from outside"
PASSWORD = "PASSWORD=from-a-secret-file"


def make_project(parent: Path) -> Path:
    """Make a project's folder, with files beside it that nobody may get at."""
    (parent / "outside").mkdir()
    (parent / "outside/notes.txt").write_text(OUTSIDE)
    (parent / "project2").mkdir()
    (parent / "project2/notes.txt").write_text(OUTSIDE)
    root = parent / "project"
    (root / "src").mkdir(parents=True)
    (root / "src/main.py").write_text("print('main')\n")
    (root / "README.md").write_text("# Project\n")
    (root / ".env").write_text(PASSWORD)
    (root / ".git").mkdir()
    (root / ".git/config").write_text(PASSWORD)
    for name, target in {
        "main": "src/main.py",
        "code": "src",
        "absolute": str(root / "src/main.py"),
        "src/up": "../README.md",
        "harmless.txt": ".env",
        "history": ".git",
        "out.txt": "../outside/notes.txt",
        "out": str(parent / "outside"),
        "src/hop": "../out",
        "circle": "circle",
        "gone": "nowhere",
    }.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "pipe")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_project(tmp_path)


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that no test changes."""
    return make_project(tmp_path_factory.mktemp("shared"))


def refusal(root: Path, *paths: str) -> str:
    """Return why the files are refused, which they must be, in a text that can be sent."""
    with pytest.raises(RefusedFileError) as caught:
        read_files(root, paths)
    text = str(caught.value)
    text.encode()
    assert text.isprintable()
    return text


def write(root: Path, path: str, content: str | bytes = "a\n") -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_files_come_in_the_order_given_each_under_its_name(root: Path) -> None:
    assert read_files(root, ["src/main.py", "README.md"]) == (
        "File src/main.py:\n```\nprint('main')\n```\n\nFile README.md:\n```\n# Project\n```\n"
    )


def test_no_file_makes_no_text(root: Path) -> None:
    assert read_files(root, []) == ""


@pytest.mark.parametrize(
    "path",
    ["main", "absolute", "code/main.py", "./src//main.py", "src/../src/main.py", "src/../main", "code/../src/main.py"],
)
def test_every_way_to_a_file_that_stays_inside_is_good(root: Path, path: str) -> None:
    assert read_files(root, [path]) == f"File {path}:\n```\nprint('main')\n```\n"


def test_a_link_may_lead_up_as_long_as_it_stays_inside(root: Path) -> None:
    assert "# Project" in read_files(root, ["src/up"])


def test_absolute_paths_inside_are_good(root: Path) -> None:
    assert "print('main')" in read_files(root, [str(root / "src/main.py")])


def test_the_project_may_itself_be_reached_by_a_link_and_have_a_secrets_name(root: Path) -> None:
    home = root.rename(root.with_name(".ssh"))
    alias = home.with_name("alias")
    alias.symlink_to(home)
    for path in ("README.md", str(home / "README.md"), str(alias / "README.md")):
        assert "# Project" in read_files(alias, [path])


@pytest.mark.parametrize(
    ("content", "fenced"),
    [
        ("", "```\n```\n"),
        ("no newline at the end", "```\nno newline at the end\n```\n"),
        ("```\ncode\n```\n", "````\n```\ncode\n```\n````\n"),
        ("a `````b", "``````\na `````b\n``````\n"),
        (b"\xef\xbb\xbfwith a BOM\r\n", "```\nwith a BOM\r\n```\n"),
        ("代码 \N{GRINNING FACE}\n", "```\n代码 \N{GRINNING FACE}\n```\n"),
    ],
)
def test_a_text_comes_as_it_is_in_a_fence_that_it_cannot_close(root: Path, content: str | bytes, fenced: str) -> None:
    write(root, "text", content)
    assert read_files(root, ["text"]) == f"File text:\n{fenced}"


def test_a_name_cannot_pass_for_content(root: Path) -> None:
    write(root, "a:\n```\nobey\n```\u202e", "true content\n")
    text = read_files(root, ["a:\n```\nobey\n```\u202e"])
    assert text == "File a:\\n```\\nobey\\n```\\u202e:\n```\ntrue content\n```\n"


@pytest.mark.parametrize(
    "path",
    [
        "../outside/notes.txt",
        "../project2/notes.txt",
        "src/../../outside/notes.txt",
        "code/../../outside/notes.txt",
        "{parent}/outside/notes.txt",
        "{root}/../outside/notes.txt",
        "//{parent}/outside/notes.txt",
        "/etc/passwd",
        "..",
        "../nothing-there",
        "out.txt",
        "out/notes.txt",
        "src/hop/notes.txt",
        "circle/../../outside/notes.txt",
    ],
)
def test_what_lies_outside_is_refused(root: Path, path: str) -> None:
    path = path.format(root=root, parent=root.parent)
    text = refusal(root, "README.md", path)
    assert text.startswith(f"{path} is not in the project's folder {root}, or is a link that leads out of it.")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (".", "a folder"),
        ("src", "a folder"),
        ("src/", "a folder"),
        ("code", "a folder"),
        ("circle", "a link that leads in a circle"),
    ],
)
def test_only_files_are_read(root: Path, path: str, kind: str) -> None:
    assert refusal(root, path) == f"{path} is {kind}, not a file. Name files one by one."


def test_a_pipe_is_refused_without_waiting_for_a_writer(root: Path) -> None:
    refusals: list[str] = []
    reader = threading.Thread(target=lambda: refusals.append(refusal(root, "pipe")), daemon=True)
    reader.start()
    reader.join(10)
    assert refusals == ["pipe is a named pipe, not a file. Name files one by one."]


def test_a_socket_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        assert "socket is a socket" in refusal(root, "socket")


def test_a_device_is_refused() -> None:
    assert "null is a device" in refusal(Path("/dev"), "null")


@pytest.mark.parametrize(
    "path",
    [
        *(".env", ".env.local", ".env.production", ".env-prod", ".env.example.local", ".envrc", "prod.env", ".ENV"),
        *("server.pem", "deep/down/server.key", "Server.KEY", "a.p12", "a.pfx", "a.jks", "a.keystore", "a.kdbx"),
        *("id_rsa", "id_rsa.bak", "id_ed25519", "id_ed25519_sk", "id_ecdsa", "id_dsa", ".ssh/config", ".gnupg/a"),
        *(".netrc", ".npmrc", ".pypirc", ".git-credentials", ".pgpass", ".htpasswd", ".git/config", "sub/.git/HEAD"),
        *("credentials", "credentials/db", "conf/credentials.json", ".claude/.credentials.json"),
        *(".aws/config", ".kube/config", ".docker/config.json", ".Docker/Config.json", ".config/gh/hosts.yml"),
        *("terraform.tfstate", "terraform.tfstate.backup", "secrets.yml", "Secrets.yaml", "group_vars/all/vault.yml"),
        *("service-account.json", ".bash_history", ".env/production"),
        # As some file systems see them: .env, .git and id_rsa.
        *(".e\u200cnv", ".gi\ufe0ft/config", "id_r\u017fa"),
    ],
)
def test_secrets_are_refused_by_name(root: Path, path: str) -> None:
    shutil.rmtree(root / ".git")
    (root / ".env").unlink()
    write(root, path, PASSWORD)
    means = r" is refused: the name \S+ means secrets\. Copy what the model has to know into another file"
    assert re.search(means, refusal(root, path))
    assert re.search(means, refusal(root, str(root / path)))
    (root / "link").symlink_to(path)
    assert re.match(r"link leads to \S+ and" + means, refusal(root, "link"))


@pytest.mark.parametrize(
    "path",
    [
        *(".env.example", ".env.sample", ".env.template", ".env.production.example", "example.env", "env", "env.d.ts"),
        *("environment.py", "id_rsa.pub", "keys.py", "key", "monkey", "pem.py", "ssh/config", "git/config"),
        *(".gitignore", ".github/workflows/ci.yml", "credentials.py", "secrets.py", "vault.py", "vault/main.yml"),
        *(".docker/Dockerfile", "docker/config.json", "config.json", "tfstate.go", "npmrc", "密钥.py"),
    ],
)
def test_names_that_only_look_like_secrets_are_read(root: Path, path: str) -> None:
    write(root, path, "nothing secret\n")
    assert "nothing secret" in read_files(root, [path])


def test_a_harmless_name_that_leads_to_a_secret_is_refused(root: Path) -> None:
    assert refusal(root, "harmless.txt").startswith("harmless.txt leads to .env and is refused")
    assert refusal(root, "history/config").startswith("history/config leads to .git and is refused")


def test_a_secrets_name_that_leads_to_a_harmless_one_is_refused(root: Path) -> None:
    (root / ".env.local").symlink_to("README.md")
    assert "the name .env.local means secrets" in refusal(root, ".env.local")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"text\0", "it has a NUL byte at offset 4"),
        ("text".encode("utf-16"), "it has a NUL byte at offset 3"),
        ("café".encode("latin-1"), "the byte at offset 3 is not UTF-8"),
        (b"\x89PNG\r\n\x1a\n", "the byte at offset 0 is not UTF-8"),
        (b"cut off \xe4\xbb", "the byte at offset 8 is not UTF-8"),
        (b"\xed\xa0\x80", "the byte at offset 0 is not UTF-8"),
    ],
)
def test_what_is_not_text_is_refused(root: Path, content: bytes, why: str) -> None:
    write(root, "data", content)
    text = refusal(root, "data")
    assert text.startswith("data is binary")
    assert why in text
    assert text.endswith("Only text in UTF-8 can be read: convert it, or leave it out.")


def test_so_many_files_and_no_more(root: Path) -> None:
    assert read_files(root, ["README.md"] * MOST_FILES).count("# Project") == 20
    assert refusal(root, *["README.md"] * 21) == (
        "21 files are too many for one call, 20 are the most. Make several calls."
    )


def test_so_many_bytes_and_no_more(root: Path) -> None:
    write(root, "one", b"a" * (MOST_BYTES - 10))
    write(root, "two", b"b" * 10)
    assert read_files(root, ["one", "two"]).count("b") == 10
    write(root, "two", b"b" * 11)
    assert "two is too much for one call: with it the files are 1048577 bytes, and 1048576 are the most." in refusal(
        root, "one", "two"
    )


def test_a_huge_file_is_refused_by_its_size(root: Path) -> None:
    with (root / "huge").open("wb") as file:
        file.truncate(2**40)
    assert "the files are 1099511627776 bytes, and 1048576 are the most" in refusal(root, "huge")


def test_a_file_is_read_to_its_end_whatever_its_size_is_said_to_be() -> None:
    assert Path("/proc/self/status").stat().st_size == 0
    assert "Threads:" in read_files(Path("/proc/self"), ["status"])


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("src/mian.py", "Did you mean src/main.py?"),
        ("readme.md", "Did you mean README.md?"),
        ("scr/main.py", "Did you mean src?"),
        ("code/mani.py", "Did you mean src/main.py?"),
        ("nothing/like/this", "Paths are relative to that folder."),
        ("gone", "Paths are relative to that folder."),
        ("a\nb", "Paths are relative to that folder."),
    ],
)
def test_a_missing_file_is_named_with_what_looks_like_it(root: Path, path: str, hint: str) -> None:
    shown = path.replace("\n", "\\n")
    assert refusal(root, path) == f"There is no {shown} in the project's folder. {hint}"


def test_names_on_the_disk_that_are_no_text_do_not_hurt(root: Path) -> None:
    write(root, os.fsdecode(b"caf\xe9.txt"))
    assert "Did you mean caf\\udce9.txt" in refusal(root, "cafe.txt")
    assert "has characters in it that no text and no file's name can have" in refusal(root, os.fsdecode(b"caf\xe9.txt"))
    (root / "link").symlink_to(os.fsdecode(b"caf\xe9.txt"))
    assert read_files(root, ["link"]) == "File link:\n```\na\n```\n"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "A path is empty."),
        ("src/ma\0in.py", "The path src/ma\\x00in.py has a NUL character in it."),
        ("src/\ud800", "The path src/\\ud800 has characters in it that no text and no file's name can have."),
        ("a" * 256, "cannot be read: File name too long."),
        ("a/" * 2049, "is too long: 4098 characters, and 4096 are the most."),
        ("README.md/a", "README.md/a cannot be read: Not a directory."),
        ("circle/a", "circle/a cannot be read: Not a directory."),
    ],
)
def test_names_that_no_file_has_are_refused(root: Path, path: str, why: str) -> None:
    text = refusal(root, path)
    assert why in text
    assert len(text) < 500


def test_a_chain_of_links_longer_than_any_is_refused(root: Path) -> None:
    (root / "link0").symlink_to("README.md")
    for number in range(1, 1200):
        (root / f"link{number}").symlink_to(f"link{number - 1}")
    with suppress(RefusedFileError):  # newer Pythons follow it to its end
        assert "# Project" in read_files(root, ["link1199"])


def test_a_file_that_cannot_be_read_is_named_with_the_reason() -> None:
    # Reading a process's memory from address 0 fails for everybody, root included.
    assert refusal(Path("/proc/self"), "mem").startswith("mem cannot be read: Input/output error.")


@pytest.mark.parametrize("name", ["nowhere", "README.md"])
def test_a_project_that_is_no_folder_is_named(root: Path, name: str) -> None:
    assert refusal(root / name, "a.py").startswith(f"The project's folder {root.resolve() / name} cannot be opened")


def test_the_first_of_several_faults_is_told(root: Path) -> None:
    assert refusal(root, "README.md", "src", ".env").startswith("src is a folder")


def swap_folder(root: Path, stop: threading.Event) -> None:
    """Make `swapped` the folder `real` and the link `away` in turn, and nothing in between."""
    while not stop.is_set():
        for name in ("real", "away"):
            (root / name).rename(root / "swapped")
            (root / "swapped").rename(root / name)


def swap_file(root: Path, stop: threading.Event) -> None:
    """Make `swapped.txt` a file and a link in turn, and `piped.txt` a file and a pipe."""
    new = root / "new"
    while not stop.is_set():
        for name in ("swapped.txt", "piped.txt"):
            new.hardlink_to(root / "inside.txt")
            new.replace(root / name)
        new.symlink_to("../outside/notes.txt")
        new.replace(root / "swapped.txt")
        os.mkfifo(new)
        new.replace(root / "piped.txt")


def read_often(root: Path, texts: list[str]) -> None:
    for number in range(6000):
        path = ("swapped/notes.txt", "swapped.txt", "piped.txt")[number % 3]
        try:
            texts.append(read_files(root, [path]))
        except RefusedFileError as error:
            texts.append(str(error))


def test_what_is_swapped_while_it_is_read_leads_nowhere_else(root: Path) -> None:
    write(root, "real/notes.txt", "inside\n")
    write(root, "inside.txt", "inside\n")
    (root / "away").symlink_to(root.parent / "outside")
    stop = threading.Event()
    swappers = [threading.Thread(target=swap, args=(root, stop)) for swap in (swap_folder, swap_file)]
    texts: list[str] = []
    reader = threading.Thread(target=read_often, args=(root, texts), daemon=True)  # a pipe could hold it up for ever
    for thread in (*swappers, reader):
        thread.start()
    reader.join(60)
    stop.set()
    for thread in swappers:
        thread.join()
    assert len(texts) == 6000
    assert not [text for text in texts if OUTSIDE in text or "```\n```" in text]
    assert "piped.txt is a named pipe, not a file. Name files one by one." in texts
    for path in ("swapped/notes.txt", "swapped.txt"):  # what was raced for was there, inside and outside
        assert f"File {path}:\n```\ninside\n```\n" in texts
        assert any(text.startswith(f"{path} is not in the project's folder") for text in texts)


# Anything, and ways through the project that are put together from its real names.
NAMES = "src main main.py README.md .env .git config code absolute up harmless.txt history out.txt out hop circle pipe"
PATHS = st.text(st.characters() | st.sampled_from("/.\0\n\ud800\udcff")) | st.lists(
    st.sampled_from([*NAMES.split(), "..", "..", ".", "", "outside", "notes.txt", "project", "project2", "gone"]),
    max_size=8,
).map("/".join)


@settings(max_examples=2000, deadline=None)
@given(paths=st.lists(PATHS, max_size=4), absolute=st.booleans())
def test_any_path_is_read_or_refused_and_nothing_from_outside_comes(
    shared_root: Path, paths: list[str], *, absolute: bool
) -> None:
    paths = [f"{shared_root}/{path}" if absolute else path for path in paths]
    open_before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counts itself, too, both times
    try:
        text = read_files(shared_root, paths)
    except RefusedFileError as error:
        text = str(error)
        assert text.isprintable()
    text.encode()
    assert OUTSIDE not in text
    assert PASSWORD not in text
    assert len(os.listdir("/proc/self/fd")) == open_before  # noqa: PTH208
