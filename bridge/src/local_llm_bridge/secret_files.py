"""Which files hold secrets: by their names, their places, and what they say.

A name or a place is enough. Of contents, only what has the form of a secret itself counts: a source file may speak of
private keys, a manual may show a token that is all x, and a template may name the variable that the token comes from.
A whole key in a test counts: nobody can tell it from one in use.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Files and folders, in lower case. A pattern with a slash means a name in a folder.
# fmt: off
_SECRETS = (
    ".env", ".env[._-]*", ".envrc", "*.env",
    # Keys and stores of keys.
    "*.pem", "*.key", "*.p8", "*.p12", "*.pfx", "*.ppk", "*.jks", "*.jceks", "*.keystore", "*.kdb", "*.kdbx",
    "*.keytab", "*.agekey", "age/keys.txt", "krb5cc_*", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".ssh",
    ".gnupg", ".password-store",
    # Networks.
    "*.ovpn", "wg[0-9]*.conf", "wireguard/*.conf", "*.nmconnection", "wpa_supplicant*.conf",
    # What programs log in with.
    ".netrc", "_netrc", ".authinfo", ".npmrc", ".pypirc", ".git-credentials", ".pgpass", "pgpass.conf",
    ".my.cnf", ".mylogin.cnf", ".htpasswd", ".smbcredentials", ".git", "*.token", "*_token.txt",
    "credentials", "credentials.json", "credentials.toml", ".credentials", ".credentials.json",
    "oauth_creds.json", "client_secret*.json", "client-secret*.json", ".m2/settings*.xml", ".gradle/gradle.properties",
    ".cargo/credentials*", ".gem/credentials", ".config/hub", ".config/glab-cli", "huggingface/token",
    "huggingface/stored_tokens",
    # Of this project, and of the clients that it serves.
    ".config/local-llm-fleet", ".claude.json", ".claude.json.*", ".codex/auth.json", "opencode/auth.json",
    # Clouds and operations.
    ".aws", ".azure", ".boto", ".s3cfg", ".databrickscfg", "rclone.conf", ".config/gcloud", ".config/gh",
    ".config/doctl", ".config/op", "service[-_]account*.json", ".kube", "kubeconfig", "*.kubeconfig", ".dockercfg",
    ".docker/config.json", "containers/auth.json", "*.tfstate", "*.tfstate.*", "*.tfvars", "*.tfvars.json",
    ".terraformrc", "terraform.rc", "credentials.tfrc.json", ".vault-token*", "vault-token",
    "secret.y*ml", "secrets.y*ml", "secrets.json", "secrets.toml", "vault*.y*ml", ".vault_pass*", "*.vault_pass",
    # What was typed.
    ".*_history",
)
_NOT_SECRET = (
    ".env*.example", ".env*.sample", ".env*.template", ".env*.dist", "*example.env", "*sample.env", "*template.env",
    "id_*.pub",
)
# fmt: on
_COPY = re.compile(
    r"(?:\.(?:bak|backup|old|orig|save|saved|copy|tmp|new|sw[a-p]|rpmsave|rpmnew|dpkg-\w+|\d+)"
    r"|[-_ ](?:bak|backup|old|copy)|~)$"
)
"""How editors, packages and people call a copy."""

_BASE64 = "[A-Za-z0-9+/=]"
_BREAK = r"(?:\\[nr]|[\s\"'+,\\])*"
_VALUE = r"[\"']?[^\s\"'{$<]{8}"
_PGPASS = r"[^:\n#]+:(?:\d{4,5}|\*):[^:\n]+:[^:\n]+:[^\n]{3,}"
_MOST_REPEATED = 8
"""Of a real secret's last 20 characters, so many are different at least; what a manual shows is all x."""
_TOKENS = (
    r"llb_[\w-]{43}", r"gh[pousr]_\w{36}", r"github_pat_\w{60}", r"glpat-[\w-]{20}", r"xox[abeprs]-[\w-]{20}",
    r"sk-ant-[\w-]{30}", r"sk-(?:proj|svcacct|admin)-[\w-]{40}", r"sk-[A-Za-z0-9]{48}", r"hf_[A-Za-z0-9]{30}",
    r"AIza[\w-]{35}", r"[rs]k_live_\w{20}", r"npm_\w{36}", r"pypi-AgE[\w-]{50}", r"hv[sbr]\.[\w-]{24}",
    r"[A-Za-z0-9]{14}\.atlasv1\.[\w-]{60}", r"do[opr]_v1_[a-f0-9]{64}", r"dckr_pat_[\w-]{27}", r"GOCSPX-[\w-]{28}",
    r"ya29\.[\w-]{50}", r"SG\.[\w-]{22}\.[\w-]{43}",
)  # fmt: skip


@dataclass(frozen=True)
class _Kind:
    """A kind of secret.

    Args:
        what: it is called.
        form: of the secret itself.
        words: in lower case, any of which the text must have; it is what makes the search quick.
        place: what else the text must have.
    """

    what: str
    form: str
    words: tuple[str, ...]
    place: str | None = None

    def lines(self, text: str, lower: str) -> Iterator[int]:
        """Yield the lines of a text that have one."""
        if not any(word in lower for word in self.words) or (self.place and not re.search(self.place, text)):
            return
        for found in re.finditer(self.form, text):
            if "example" not in found.group().lower() and len(set(found.group()[-20:])) >= _MOST_REPEATED:
                yield text.count("\n", 0, found.start()) + 1


_KINDS = (
    _Kind(
        "a private key",
        rf"-----BEGIN (?:[A-Z0-9]{{1,20}} ){{0,3}}PRIVATE KEY(?: BLOCK)?-----{_BREAK}"
        rf"(?:[A-Z][A-Za-z-]{{1,30}}: [^\n]{{1,100}}{_BREAK}){{0,5}}{_BASE64}{{40}}",
        ("private key",),
    ),
    _Kind(
        "a static key of OpenVPN",
        rf"-----BEGIN OpenVPN Static key V1-----{_BREAK}[0-9a-f]{{32}}",
        ("openvpn static key",),
    ),
    _Kind("a key of PuTTY", rf"(?m)^Private-Lines: \d+\r?\n{_BASE64}{{40}}", ("private-lines",)),
    _Kind("a key of age", r"AGE-SECRET-KEY-(?:PQ-)?1[0-9A-Z]{50}", ("age-secret-key-",)),
    _Kind(
        "a key of WireGuard",
        rf"(?mi)^[ \t]*(?:PrivateKey|PresharedKey)[ \t]*=[ \t]*{_BASE64}{{43}}=",
        ("privatekey", "presharedkey"),
    ),
    _Kind(
        "a key of AWS",
        rf"(?i)secret_?access_?key[\"']?\s*[=:]\s*[\"']?[A-Za-z0-9+/]{{40}}(?!{_BASE64})",
        ("secret_access_key", "secretaccesskey", "secret_accesskey", "secretaccess_key"),
    ),
    _Kind(
        "a token",
        rf"\b(?:{'|'.join(_TOKENS)})",
        (
            *(
                "llb_",
                "ghp_",
                "gho_",
                "ghu_",
                "ghs_",
                "ghr_",
                "github_pat_",
                "glpat-",
                "xox",
                "sk-",
                "hf_",
                "aiza",
                "k_live_",
            ),
            *("npm_", "pypi-age", "hvs.", "hvb.", "hvr.", ".atlasv1.", "_v1_", "dckr_pat_", "gocspx-", "ya29.", "sg."),
        ),
    ),
    _Kind(
        "a token of Vault",
        r"(?i)(?:x-vault-token|vault_token)[\"']?\s*[:=]\s*[\"']?[sb]\.[\w-]{24}",
        ("x-vault-token", "vault_token"),
    ),
    _Kind("a token of Vault", r"\A\s*[sb]\.[\w-]{24,200}\s*\Z", ("s.", "b.")),
    _Kind(
        "a token of npm",
        r"(?m)(?:(?:^|:)_(?:authToken|auth|password)[ \t]*=|^[ \t]*npmAuthToken:)[ \t]*[\"']?(?!\$)[\w+/=.-]{8}",
        ("_auth", "_password", "npmauthtoken"),
    ),
    _Kind(
        "a password of a Git remote",
        r"(?mi)^[ \t]*(?:push)?url[ \t]*=[ \t]*https?://(?:[^\s/:@]*:[^\s/@]+|\w{20,100})@",
        ("://",),
        r"(?m)^\s*\[(?:remote|submodule|url)\b",
    ),
    _Kind("passwords that Git keeps", r"(?m)^https?://[^\s:/@]+:[^\s/@]+@[\w.-]+(?::\d+)?/?\r?$", ("://",)),
    _Kind("a login of netrc", r"(?m)^[ \t]*(?:machine\s+\S+|default)\s+login\s+\S+\s+password\s+\S+", ("login",)),
    _Kind("passwords of PostgreSQL", rf"\A(?:(?:#[^\n]*|[ \t]*)\n)*{_PGPASS}(?:\n+{_PGPASS})*\n*\Z", (":",)),
    _Kind(
        "a password of PyPI",
        r"(?m)^[ \t]*password[ \t]*[=:][ \t]*[^\s%$<{]\S{3}",
        ("password",),
        r"(?m)^\[(?:pypi|testpypi|distutils)\]",
    ),
    _Kind(
        "a login of a registry",
        r"\"(?:auth|identitytoken)\"\s*:\s*\"[\w+/=.-]{8}",
        ('"auths"',),
        r"\"auths\"\s*:\s*\{",
    ),
    _Kind("a key of Kubernetes", rf"client-key-data[\"']?\s*:\s*[\"']?{_BASE64}{{40}}", ("client-key-data",)),
    _Kind(
        "a login of Kubernetes",
        rf"(?m)^[ \t]*(?:token|password):[ \t]*{_VALUE}",
        ("kind:",),
        r"(?m)^kind:[ \t]*Config[ \t]*$",
    ),
    _Kind(
        "a secret of Kubernetes",
        rf"(?m)^(?:data|stringData):[ \t]*\n[ \t]+[\w.-]+:[ \t]*{_VALUE}",
        ("kind:",),
        r"(?m)^kind:[ \t]*Secret[ \t]*$",
    ),
    _Kind(
        "a secret of Google",
        r"\"client_secret\"\s*:\s*\"[^\"]{16}",
        ('"client_secret"',),
        r"\"(?:installed|web)\"\s*:\s*\{",
    ),
    _Kind(
        "a token of Terraform",
        r"(?m)^[ \t]*token[ \t]*=[ \t]*\"[^\"\n$]{10}",
        ("credentials",),
        r"(?m)^[ \t]*credentials[ \t]+\"[^\"\n]+\"[ \t]*\{",
    ),
    _Kind("hashes of passwords", r"(?m)^[\w.-]+:\$(?:1|apr1|2[aby]|5|6|y|7)\$[./A-Za-z0-9$=,]{20}", (":$",)),
)


def is_secret_name(name: str, parent: str) -> bool:
    """Whether a file or folder is secret, judged by its name.

    Args:
        name: its name.
        parent: the name of the folder that it is in.
    """
    names, parent = _originals(_judged(name)), _judged(parent)
    return any(_fits(name, parent, _SECRETS) for name in names) and not any(
        _fits(name, parent, _NOT_SECRET) for name in names
    )


def find_secret(text: str) -> tuple[str, int] | None:
    """Return what kind of secret a text holds, and in which line it begins; None: none that is known."""
    lower = text.lower()
    return next(((kind.what, line) for kind in _KINDS for line in kind.lines(text, lower)), None)


def _judged(name: str) -> str:
    """Return a name as it is judged: some file systems ignore its case and characters that cannot be seen."""
    return name.casefold().encode("ascii", "ignore").decode()


def _originals(name: str) -> list[str]:
    """Return the name, and those of what it may be a copy of."""
    names = [name]
    while (shorter := _COPY.sub("", name)) != name:
        name = shorter
        names += [name, name.lstrip(".")]  # vi's are hidden
    return names


def _fits(name: str, parent: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(f"{parent}/{name}" if "/" in pattern else name, pattern) for pattern in patterns)
