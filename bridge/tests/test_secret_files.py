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
from local_llm_bridge.tools.files import MOST_BYTES, read_files
from local_llm_bridge.tools.secret_files import find_secret
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
        *(
            ".Config/Local-LLM-Fleet/x",
            "KEY.PEM.BAK",
            "wg0\u200c.conf",
            "\uff0e\uff45nv",
            "id_r\u017fa",
            ".env ",
            ".env.",
        ),
        *(".dev.vars", ".secrets", "my.keychain-db", "a.pkcs12", "ssh_host_rsa_key", ".local/share/keyrings/login"),
        *(".gemini/oauth_creds.json", ".qwen/auth.json", ".factory/auth.json", ".cline/data/secrets.json"),
        *(".config/github-copilot/apps.json", ".mcp-auth/x/tokens.json", ".config/configstore/firebase-tools.json"),
        *(".aliyun/config.json", ".tccli/default.credential", ".volc/config.json", ".hcloud/config.json", ".cos.conf"),
        *(
            ".oci/config",
            ".fly/config.yml",
            ".config/netlify/config.json",
            ".pulumi/credentials.json",
            "x-firebase-adminsdk-1.json",
        ),
        *(
            ".local/share/com.vercel.cli/auth.json",
            ".config/scw/config.yaml",
            ".chef/user.rb",
            "ngrok.yml",
            "kaggle.json",
        ),
        *(
            ".mozilla/firefox/a/prefs.js",
            "logins.json",
            "cookies.txt",
            "session.har",
            ".vscode/sftp.json",
            ".ftpconfig",
        ),
        *(
            ".vault-pass",
            ".vault_password",
            "vault_pass.txt",
            "vault-password-file",
            "secrets.prod.yaml",
            "fleet_secrets/ca",
        ),
        *("ConsoleHost_history.txt", ".local/share/fish/fish_history", ".lesshst", ".viminfo", ".purple/accounts.xml"),
        *(
            "#.env#",
            "key.pem.bak2",
            "id_rsa (copy)",
            "credentials.json.2026-11-30",
            "credentials-2026-11-30",
            "Copy of .env",
        ),
        *("credentials,v", "kubeconfig.txt", "wg0.conf.disabled", "secrets.yml-old-2"),
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
    "Django": "SECRET_KEY = 'zh!=!gq(w^_t[sBR29954x)HI+$ehwss*xYNQeu([xcWMhdzzr'\n",
    "Django's own": f"SECRET_KEY = 'django-insecure-{made(50)}'\n",
    "Aliyun": f'{{"mode": "AK", "access_key_id": "LTAI5t", "access_key_secret": "{made(30)}"}}',
    "Tencent": f'{{"secretId": "AKID1", "secretKey": "{made(32)}"}}',
    "Huawei": f"secretAccessKey={made(40)}\n",
    "Baidu": f"bce-v3/ALTAK-{made(20)}/{made(40, '0123456789abcdef')}",
    "DashScope": f"llm = Client({'sk'}-{made(32, '0123456789abcdef')})\n",
    "Azure's storage": f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={encoded(64)};EndpointSuffix=x\n",
    "Azure's cache": f'{{"RefreshToken": {{"a": {{"secret": "0.A{made(300)}"}}}}}}',
    "gcloud": f'{{"client_id": "a", "refresh_token": "1//0{made(60)}", "type": "authorized_user"}}',
    "Claude Code": f'{{"claudeAiOauth": {{"accessToken": "{made(90)}", "expiresAt": 1}}}}',
    "Codex": f'{{"tokens": {{"id_token": "x", "access_token": "{made(90)}"}}}}',
    "Vercel": f'{{"token": "{made(24)}"}}',
    "Netlify": f'{{"auth": {{"token": "{made(43)}"}}}}',
    "Fly": f"access_token: FlyV1 {'fm2'}_{made(80)}\n",
    "Heroku": "HEROKU_API_KEY=0b9dbf1e-3a4f-4c5e-9d2b-7f8a6c1e2d3f\n",
    "Tailscale": f"{'tskey'}-auth-{made(12)}-{made(24)}",
    "Telegram": f"bot(123456789:AA{made(33)})\n",
    "a hook of Slack": f"https://hooks.slack.com/services/T{made(8)}/B{made(8)}/{made(24)}",
    "s3cmd": f"[default]\nsecret_key = {made(40)}\n",
    "rclone": f'[a]\ntoken = {{"access_token":"{made(40)}"}}\n',
    "JWT": f"{'eyJ'}hbGciOiJSUzI1NiJ9.eyJ{made(90)}.{made(80)}",
    "JWK": f'{{"kty": "EC", "crv": "P-256", "x": "a", "d": "{made(43)}"}}',
    "a header in JSON": f'{{"headers": {{"Authorization": "Bearer {made(43)}"}}}}\n',
    "a header in JavaScript": f"const headers = {{ Authorization: `Basic {made(40)}` }};\n",
    "a header": f'curl -H "Authorization: Bearer {made(40)}" https://a.internal\n',
    "escaped JSON": f'x = "{{\\"api_key\\": \\"{made(32)}\\"}}"\n',
    "XML": f"<config><apiKey>{made(32)}</apiKey></config>",
    "pairs": f"env:\n- name: API_TOKEN\n  value: {made(40)}\n",
    "PHP": f"$config['secret_key'] = '{made(32)}';\n",
    "Rails": f"secret_key_base: {made(128, '0123456789abcdef')}\n",
    "a key alone": made(32, "0123456789abcdef") + "\n",
    "pip": "[global]\nindex-url = https://me:correct-horse@pypi.internal/simple\n",
    "requirements": "--extra-index-url https://me:correct-horse@pypi.internal/simple\nrequests\n",
    "gitconfig": f'[url "https://me:{made(20)}@git.internal/"]\n\tinsteadOf = https://git.internal/\n',
    "a database": f"url: postgres://app:{made(12)}7@db.internal:5432/app\n",
    "MySQL": "[client]\nuser=root\npassword=correcthorse\n",
    "sftp": '{\n  "host": "ftp.acme.net",\n  "username": "root",\n  "password": "swordfish!23"\n}\n',
    "FileZilla": "<Server>\n<Host>ftp.acme.net</Host>\n<Pass>Swordfish23</Pass>\n</Server>\n",
    "variables": "# production\nDB_HOST=db\nexport DB_PASSWORD=correct-horse\n",
    "WordPress": "define( 'DB_NAME', 'a' );\ndefine( 'DB_PASSWORD', 'correcthorse' );\n",
    "Maven": "<settings><servers>\n<server>\n<password>correcthorse</password>\n</server></servers></settings>\n",
    "a kubeconfig in JSON": f'{{\n"kind": "Config",\n"token": "{made(40)}"\n}}\n',
    "a later line of a secret": f"kind: Secret\nstringData:\n  user: a\n  password: {made(9)}\n",
    "state": '{"version": 4, "terraform_version": "1.9.0", "lineage": "0b9dbf1e-3a4f-4c5e-9d2b-7f8a6c1e2d3f"}',
    "cookies": f".acme.net\tTRUE\t/\tTRUE\t1900000000\tsession\t{made(30)}\n",
    "Firefox": f'{{"logins": [{{"encryptedPassword": "{encoded(60)}"}}]}}',
    "Apache": f"me:{{SHA}}{made(27)}=\n",
    "a wireless network": 'network={\n  ssid="home"\n  psk="correct-horse"\n}\n',
    "a key in base64": "tls.key: " + base64.b64encode(pem("RSA PRIVATE KEY").encode()).decode(),
    "a key in base64, moved by one": base64.b64encode(pem("OPENSSH PRIVATE KEY").encode()).decode(),
    "a key in base64, moved by two": base64.b64encode(pem("PRIVATE KEY").encode()).decode(),
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
    if content.startswith(("s.", "# mine\ndb", "# production")) or re.fullmatch(
        r"[0-9a-f]{32}\n", content
    ):  # which are secrets only where they are all that there is
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
    "a fixture": '{"username": "alice", "password": "hunter2"}\nlogin(password="correct-horse", token="abc123")\n',
    "a manual of keys": "Set `API_KEY=your-api-key-goes-here-1234` or pass `--token <token>`.\n",
    "a template of variables": "DB_PASSWORD=changeme\nSECRET_KEY=\nAPI_KEY=<your key>\nTOKEN=xxxxxxxxxxxx\n"
    "PASSWORD=password\n",
    "code": "token = request.headers.get('X-Api-Token')\napi_key = settings.OPENAI_API_KEY_V2\n"
    "secret: str = make_secret_key2()\n",
    "names": "secretName: prod-db-7f9a8b6c5d4e3f2a\ntoken_url: https://a.internal/oauth2/v2.0/token\n"
    "publicKeyToken=b77a5c561934e089\n",
    "hashes of tokens": "token_sha256: " + made(64, "0123456789abcdef") + "\n",
    "OpenAPI": "securitySchemes:\n  key: {type: apiKey, in: header, name: X-API-Key}\n"
    '  password: {type: string, example: "p4ss"}\n',
    "a lock": f'"node_modules/token-types": {{"integrity": "sha512-{encoded(64)}"}}\n',
    "a lock of uv": 'name = "keyring"\nsdist = { hash = "sha256:' + made(64, "0123456789abcdef") + '" }\n',
    "a builder of PEM": 'def pem(der):\n  return "-----BEGIN PRIVATE KEY-----\\n" + b64(der) + END\n',
    "a certificate in base64": "certificate-authority-data: "
    + base64.b64encode(pem("CERTIFICATE", 800).encode()).decode(),
    "a public JWK": f'{{"kty": "RSA", "n": "{made(342)}", "e": "AQAB"}}',
    "a public key of SSH": f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5{made(48)} me@host\n",
    "the JWT of all manuals": f"{'eyJ'}hbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
    f".eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIn0.{made(43)}",
    "a composition": "services:\n  db:\n    environment:\n      POSTGRES_PASSWORD: postgres\n      URL: postgres://app:app@db/app\n",
    "tests of addresses": "redis://:password@localhost:6379\nhttps://user:pass@example.com/\namqp://guest:guest@rabbit:5672\n",
    "a workflow": "env:\n  TOKEN: ${{ secrets.GITHUB_TOKEN }}\n  KEY: ${API_KEY}\n",
    "a page of tokens": "nextPageToken: CAUQAAxk29fj3k20fk3\ncsrf_token = f3a9c1b7e5d24680\n",
    "a commit": made(40, "0123456789abcdef") + "\n",
    "translations": "login.password=Passwort\nlogin.token=Zugangsschlüssel\n",
    "a server without password": "host: db.internal\nuser: app\npassword: ${DB_PASSWORD}\n",
    "SOPS": f"password: ENC[AES256_GCM,data:{encoded(30)},iv:{encoded(12)},type:str]\n",
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
        *("cert.pem", "tls/fullchain.pem", "public.pem", "kubeconfig_test.go", "vault_password.py", "pip.conf"),
        *(
            ".vscode/settings.json",
            ".changeset/config.json",
            ".circleci/config.yml",
            "shadow/index.ts",
            "password/reset.py",
        ),
        *("order_history/a.py", "csrf-token/index.ts", "notes (2).md", "secrets.example.yml", "prod.example.tfvars"),
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


@pytest.mark.parametrize("name", [".env.example", "settings.template.ini", "db.conf.j2"])
def test_a_template_may_have_passwords_that_people_make_up_but_no_token(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, "DB_PASSWORD=correct-horse\n")
    assert "horse" in read_files(tmp_path, [name])
    write(tmp_path, name, f"DB_PASSWORD=correct-horse\nTOKEN={made(40)}\n")
    assert "line 2 has a secret" in refusal(tmp_path, name)


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "key=",
            "key",
            "KEY_",
            "://a:b",
            "password: hunter22\n",
            "PASS=x\n",
            '"d": "aaaaaaaaaaaaaaaaaaaaaabc"',
            "eyJ",
        ),
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
