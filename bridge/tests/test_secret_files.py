"""Files with secrets are refused by name, place and content, and files that only speak of secrets are read."""

from __future__ import annotations

import base64
import random
import re
import string
import subprocess
from pathlib import Path

import pytest

from local_llm_bridge import tokens
from local_llm_bridge.errors import RefusedFileError
from local_llm_bridge.files import MOST_BYTES, read_files
from local_llm_bridge.secret_files import find_secret
from tests.test_files import refusal, write

CHANCE = random.Random(8)
REPOSITORY = Path(__file__).parents[2]


def made(length: int, characters: str = string.ascii_letters + string.digits) -> str:
    """Make up the random part of a secret, so that none stands in this file."""
    return "".join(CHANCE.choices(characters, k=length))


def encoded(size: int) -> str:
    return base64.b64encode(CHANCE.randbytes(size)).decode()


def pem(kind: str, size: int = 200) -> str:
    lines = re.findall(".{1,64}", encoded(size))
    return "\n".join([f"-----BEGIN {kind}-----", *lines, f"-----END {kind}-----", ""])


@pytest.mark.parametrize(
    "path",
    [
        *(".config/local-llm-fleet/local-llm.token", ".config/local-llm-fleet/gateway", "my.token"),
        *(".claude.json", ".claude.json.backup", ".claude.json.bak", ".codex/auth.json"),
        *(".vault-token", ".vault-token.old", "credentials.tfrc.json", ".terraform.d/credentials.tfrc.json"),
        *(".terraformrc", "terraform.rc", "client_secret.json", "client_secret_12-a.apps.googleusercontent.com.json"),
        *("office.ovpn", "wg0.conf", "wg-home/wg1.conf", "wireguard/home.conf", "office.nmconnection"),
        *("key.pem.bak", "key.pem~", "key.pem.old", "key.pem.1", "server.key.orig", ".key.pem.swp", ".env.bak"),
        *(".env~", ".netrc.save", "id_rsa.old", ".pgpass.dpkg-old", "secrets.yml.bak.2", "prod.env copy"),
        *(".authinfo", ".s3cfg", ".boto", "rclone.conf", ".mylogin.cnf", "kubeconfig.bak", "prod.kubeconfig"),
        *(
            ".cargo/credentials.toml",
            ".m2/settings.xml",
            ".config/sops/age/keys.txt",
            "user.keytab",
            ".config/op/config",
        ),
        *(".Config/Local-LLM-Fleet/x", "KEY.PEM.BAK", "wg0\u200c.conf"),
    ],
)
def test_names_and_places_of_secrets_are_refused(tmp_path: Path, path: str) -> None:
    write(tmp_path, path, "harmless\n")
    assert " means secrets. Copy what the model has to know" in refusal(tmp_path, path)


def test_a_place_counts_where_it_is_the_project_itself(tmp_path: Path) -> None:
    write(tmp_path, "wireguard/home.conf", "harmless\n")
    assert "means secrets" in refusal(tmp_path / "wireguard", "home.conf")


SECRETS = {
    "a key": pem("PRIVATE KEY"),
    "a key of OpenSSL": pem("RSA PRIVATE KEY"),
    "a key of elliptic curves": "# mine\n" + pem("EC PRIVATE KEY", 90),
    "an encrypted key": pem("ENCRYPTED PRIVATE KEY"),
    "an old encrypted key": pem("RSA PRIVATE KEY").replace(
        "KEY-----\n", "KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0011\n\n", 1
    ),
    "a key of SSH": pem("OPENSSH PRIVATE KEY"),
    "a key of PGP": pem("PGP PRIVATE KEY BLOCK").replace("BLOCK-----\n", "BLOCK-----\nVersion: GnuPG v2\n\n", 1),
    "a key in JSON": '{"private_key": "' + pem("PRIVATE KEY").replace("\n", "\\n") + '"}',
    "a key in YAML": "key: |\n" + pem("PRIVATE KEY").replace("\n", "\n  ").replace("-----BEGIN", "  -----BEGIN"),
    "a key in source": "KEY = (\n" + "".join(f'    "{line}\\n"\n' for line in pem("PRIVATE KEY").splitlines()) + ")\n",
    "a key with Windows' line ends": pem("PRIVATE KEY").replace("\n", "\r\n"),
    "OpenVPN": "-----BEGIN OpenVPN Static key V1-----\n" + made(32, "0123456789abcdef") + "\n",
    "PuTTY": f"PuTTY-User-Key-File-3: ssh-ed25519\nPrivate-Lines: 1\n{encoded(48)}\n",
    "age": "# created: 2026\nAGE-SECRET-KEY-1" + made(58, "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L"),
    "WireGuard": f"[Interface]\nPrivateKey = {encoded(32)}\n",
    "AWS": f"[default]\naws_secret_access_key = {made(40)}\n",
    "AWS in JSON": f'{{"SecretAccessKey": "{made(40)}"}}',
    "AWS in a shell": f"export AWS_SECRET_ACCESS_KEY={made(40)}\n",
    "this product's token": f"token: {tokens.PREFIX}{made(43)}\n",
    "GitHub": f"token={'ghp'}_{made(36)}",
    "GitHub's new": f"{'github'}_pat_{made(82)}",
    "GitLab": f"{'glpat'}-{made(20)}",
    "Anthropic": f"{'sk-ant'}-api03-{made(80)}",
    "OpenAI": f"{'sk-proj'}-{made(60)}",
    "Hugging Face": f"HF_TOKEN={'hf'}_{made(34)}",
    "Slack": f"{'xoxb'}-{made(12, string.digits)}-{made(24)}",
    "Vault": f"VAULT_TOKEN=hvs.{made(90)}",
    "Vault's old in a header": f"X-Vault-Token: s.{made(24)}",
    "Vault's old alone": f"s.{made(24)}\n",
    "npm": f"//npm.example.com/:_authToken={made(36)}\n",
    "yarn": f"npmAuthToken: {made(36)}\n",
    "Git's configuration": f'[remote "origin"]\n\turl = https://me:{made(20)}@git.internal/x.git\n',
    "Git's configuration with a token": f'[remote "origin"]\n\turl = https://{made(30)}@git.internal/x.git\n',
    "Git's store": f"https://me:{made(12)}@git.internal\n",
    "netrc": f"machine git.internal login me password {made(12)}\n",
    "netrc on lines": f"machine git.internal\n  login me\n  password {made(12)}\n",
    "pgpass": f"# mine\ndb.internal:5432:*:me:{made(12)}\n",
    "PyPI": f"[pypi]\nusername = __token__\npassword = {made(30)}\n",
    "Docker": f'{{"auths": {{"registry.internal": {{"auth": "{encoded(20)}"}}}}}}',
    "a kubeconfig": f"apiVersion: v1\nkind: Config\nusers:\n- user:\n    token: {made(40)}\n",
    "a kubeconfig with a key": f"users:\n- user:\n    client-key-data: {encoded(60)}\n",
    "a secret of Kubernetes": f"apiVersion: v1\ndata:\n  password: {encoded(12)}\nkind: Secret\n",
    "Google": f'{{"installed": {{"client_id": "x", "client_secret": "{made(24)}"}}}}',
    "Terraform": f'credentials "app.terraform.io" {{\n  token = "{made(40)}"\n}}\n',
    "shadow": f"root:$y$j9T${made(40)}:19000:0:99999:7:::\n",
}


@pytest.mark.parametrize("content", SECRETS.values(), ids=SECRETS)
def test_contents_that_are_secrets_are_refused_and_not_repeated(tmp_path: Path, content: str) -> None:
    write(tmp_path, "notes.txt", content)
    text = refusal(tmp_path, "notes.txt")
    assert re.match(r"notes\.txt is refused: line \d+ has (a|an|passwords|hashes) ", text)
    assert not [word for word in re.findall(r"[\w+/]{10,}", content) if word in text]


@pytest.mark.parametrize("content", SECRETS.values(), ids=SECRETS)
def test_what_comes_with_a_secret_does_not_hide_it(content: str) -> None:
    if content.startswith(("s.", "# mine\ndb")):  # which are secrets only where they are all that there is
        return
    assert find_secret("x" * 100_000 + "\n" * 10_000 + content + "\n" + "y\n" * 1000)


HARMLESS = {
    "a mention in a test": 'assert text.startswith("-----BEGIN PRIVATE KEY-----")\nassert b"END PRIVATE KEY" in text\n',
    "a public key": pem("PUBLIC KEY"),
    "a certificate": pem("CERTIFICATE", 800),
    "a shortened key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEow...\n-----END RSA PRIVATE KEY-----\n",
    "a pattern": 'KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[A-Za-z0-9+/=\\s]+")\n',
    "a manual's token": f"export GITHUB_TOKEN={'ghp'}_{'x' * 36}\nllb_{'x' * 43}\n",
    "a manual's key of AWS": "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n",
    "a variable": "//npm.example.com/:_authToken=${NPM_TOKEN}\nnpmAuthToken: ${NPM_TOKEN}\n",
    "a template": "kind: Secret\ndata:\n  password: {{ .Values.password | b64enc }}\n",
    "a sealed secret": f"kind: SealedSecret\nspec:\n  encryptedData:\n    password: {encoded(100)}\n",
    "a configuration": "kind: ConfigMap\ndata:\n  password_file: /run/secrets/x\n",
    "a vault's header in code": 'headers["X-Vault-Token"] = self.token\n',
    "a database's address": 'url = "postgres://user:password@localhost/test"\n',
    "a remote": '[remote "origin"]\n\turl = https://git@github.com/me/project.git\n\turl = git@github.com:me/x.git\n',
    "source that reads netrc": "machine, login, password = netrc.authenticators(host)\n",
    "what grep prints": "src/main.py:12:def main() -> None:\nsrc/main.py:1234:    x: int = 1\n",
    "CSS": ".sk-fading-circle-container-with-a-long-name-for-a-spinner { color: red }\n",
    "a hash": "sha256:" + made(64, "0123456789abcdef") + "\n",
    "a lock file": f'"integrity": "sha512-{encoded(64)}"\n',
    "no text": "",
}


@pytest.mark.parametrize("content", HARMLESS.values(), ids=HARMLESS)
def test_what_only_speaks_of_secrets_is_read(tmp_path: Path, content: str) -> None:
    write(tmp_path, "source", content)
    assert content.strip() in read_files(tmp_path, ["source"])


@pytest.mark.parametrize(
    "path",
    [
        *("locales/en/auth.json", "src/token.py", "tokens.json", "wg.conf", "terraform.tf", "claude.json", "vault.md"),
        *("README.md.bak", "main.py~", ".env.example.bak", "id_rsa.pub.old", "client_secret.py", "docker/config.json"),
        *("local-llm-fleet/README.md", ".claude/settings.json", ".github/workflows/release.yml", "keys.txt"),
    ],
)
def test_names_that_only_look_like_those_of_secrets_are_good(tmp_path: Path, path: str) -> None:
    write(tmp_path, path, "harmless\n")
    assert "harmless" in read_files(tmp_path, [path])


def test_this_projects_own_files_are_read() -> None:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True, text=True)
    paths = [path for path in done.stdout.split("\0") if path and not (REPOSITORY / path).is_symlink()]
    refused = {}
    for path in paths:
        if (REPOSITORY / path).stat().st_size < MOST_BYTES:
            try:
                read_files(REPOSITORY, [path])
            except RefusedFileError as error:
                refused[path] = str(error)
    unexpected = {path: why for path, why in refused.items() if "is binary" not in why}
    assert len(paths) > 300
    assert len(unexpected) < len(paths) / 100, unexpected


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "-----BEGIN PRIVATE KEY-----\\n",
            "A-----BEGIN RSA PRIVATE KEY-----\n",
            "a:5432:b:c:d\n",
            "sk-",
            "_v1_",
            "token: x\n",
        ),
        *(
            "kind: Secret\n",
            "kind: Config\n",
            "https://a:b",
            "machine\n",
            "x: y\n",
            "credentials ",
            "\n",
            " ",
            "\\",
            '"',
        ),
    ],
)
def test_the_longest_text_is_judged_in_time(piece: str) -> None:
    find_secret(piece * (MOST_BYTES // len(piece)))  # what grows with the square of the text would not end
