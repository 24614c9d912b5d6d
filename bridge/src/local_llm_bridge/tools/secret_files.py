"""Which files hold secrets: by their names, their places, and what they say.

A name or a place is enough. Of contents, only what has the form of a secret itself counts: a source file may speak of
private keys, a manual may show a token that is all x, and a template may name the variable that the token comes from.
A whole key in a test counts: nobody can tell it from one in use.

Three rules find most of them, whatever they belong to: a value that chance has made, under a name such as `apiKey`; a
token with a prefix of its own; a password in an address. The others are forms of files with passwords of people.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from fnmatch import translate
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Files and folders, in lower case. A pattern with a slash means a name in a folder.
# fmt: off
_SECRETS = (
    ".env", ".env[._-]*", ".envrc", "*.env", ".dev.vars*", ".secret", ".secrets",
    # Keys and stores of keys.
    "*.pem", "*.key", "*.p8", "*.p12", "*.pfx", "*.pkcs12", "*.ppk", "*.jks", "*.jceks", "*.bks", "*.keystore",
    "*.kdb", "*.kdbx", "*.psafe3", "*.keychain", "*.keychain-db", "*.keytab", "*.agekey", "age/keys.txt", "krb5cc_*",
    "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "ssh_host_*_key", ".ssh", ".gnupg", ".password-store",
    "share/keyrings", "share/kwalletd",
    # Networks.
    "*.ovpn", "wg[0-9]*.conf", "wireguard/*.conf", "*.nmconnection", "wpa_supplicant*.conf", ".vnc",
    # What programs log in with.
    ".netrc", "_netrc", ".authinfo", ".npmrc", ".pypirc", ".git-credentials", ".pgpass", "pgpass.conf",
    ".my.cnf", ".mylogin.cnf", ".htpasswd", ".smbcredentials", ".git", "*.token", "*_token.txt",
    "credentials", "credentials.json", "credentials.toml", "credentials.xml", "credentials.y*ml", ".credentials",
    ".credentials.json", "credentials-config.json", ".*/auth.json", "oauth_creds.json", "client_secret*.json",
    "client-secret*.json", ".m2/settings*.xml", ".gradle/gradle.properties", ".cargo/credentials*", ".gem/credentials",
    ".subversion", ".mcp-auth", ".config/hub", ".config/tea", ".config/glab-cli", "huggingface/token",
    "huggingface/stored_tokens", "kaggle.json", ".sentryclirc", ".clasprc.json", ".cdsapirc", ".snowsql", ".snowflake",
    ".dbt/profiles.yml", ".esmtprc", ".msmtprc", ".fetchmailrc", ".mbsyncrc", ".offlineimaprc", ".davfs2", ".purple",
    ".ftpconfig", "sftp-config.json", ".vscode/sftp.json", ".remote-sync.json", ".idea/webservers.xml",
    "recentservers.xml", "sitemanager.xml", "filezilla.xml", "robomongo.json", "dbeaver-data-sources.xml",
    "proftpdpasswd", "ngrok.yml",
    # Browsers: most of what they keep is binary.
    ".mozilla", "logins.json", "cookies.txt", "*.har",
    # Of this project, and of the clients that it serves.
    ".config/local-llm-fleet", "fleet_secrets", ".claude.json", ".claude.json.*", "opencode/auth.json",
    "opencode/mcp-auth.json", ".cline", ".config/github-copilot", "goose/secrets.yaml", ".config/configstore",
    # Clouds and operations.
    ".aws", ".azure", ".boto", ".s3cfg", ".databrickscfg", "rclone.conf", ".config/gcloud", ".config/gh",
    ".config/doctl", ".config/op", ".config/netlify", ".config/scw", ".config/hcloud", ".config/linode-cli",
    ".config/stripe", ".fly/config.yml", "com.vercel.cli", ".wrangler", ".railway", ".pulumi", ".oci", ".bluemix",
    ".aliyun", ".tccli", ".hcloud", ".volc", ".volcengine", ".ossutilconfig", ".cos.conf", ".tugboat", ".ovh.conf",
    ".ngrok2", ".cloudflared", ".chef", "service[-_]account*.json", "*firebase-adminsdk*.json", ".kube", "kubeconfig",
    "kubeconfig.y*ml", "*.kubeconfig", ".dockercfg", ".dockerconfigjson", ".docker/config.json", "containers/auth.json",
    "*.tfstate", "*.tfstate.*", "*.tfvars", "*.tfvars.json", ".terraformrc", "terraform.rc", "credentials.tfrc.json",
    ".vault-token*", "vault-token", "secret.y*ml", "secrets.y*ml", "secrets.*.y*ml", "secrets.json", "secrets.toml",
    "vault*.y*ml", ".vault[-_]pass*", "*.vault_pass", "vault[-_]pass*",
    # What was typed.
    ".*_history", "fish_history", "consolehost_history.txt", ".histfile", ".zhistory", ".lesshst", ".viminfo",
)
_NOT_SECRET = (
    ".env*.example", ".env*.sample", ".env*.template", ".env*.dist", "*example.env", "*sample.env", "*template.env",
    "id_*.pub", "*example.tfvars", "secrets.example.y*ml",
    # Text that is judged by what it says.
    "*cert.pem", "*chain.pem", "ca.pem", "*bundle.pem", "*public*.pem", "*pub.pem", "*public*.key", "dhparam*.pem",
    "vault[-_]pass*.py", "vault[-_]pass*.md",
)
# fmt: on
_COPY = re.compile(
    r"(?:\.(?:(?:bak|backup|old|orig|saved?|copy|te?mp|new|prev|disabled|txt|sw[a-p]|rpmsave|rpmnew)\d*|dpkg-\w+)"
    r"|\.\d[\d._-]*|[-_ ](?:bak|backup|old|copy|orig)[-_ ]?\d*|[-_ ]\d{4}-?\d\d-?\d\d\w*| ?\(\w+\)|,v|[~#. ])$"
    r"|^(?:#|copy of )"
)
"""How editors, packages and people call a copy."""
_TEMPLATES = ("*example*", "*sample*", "*template*", "*.dist", "*.tpl", "*.j2", "*.tmpl")
"""Files in which passwords of people are made up."""

_BASE64 = "[A-Za-z0-9+/=]"
_BREAK = r"(?:\\[nr]|[\s\"'+,\\])*"
_PGPASS = r"[^:\n#]+:(?:\d{4,5}|\*):[^:\n]+:[^:\n]+:[^\n]{3,}"
_MOST_REPEATED = 8
"""Of a real secret's last 20 characters, so many are different at least; what a manual shows is all x."""
# fmt: off
_TOKENS = (
    r"llb_[\w-]{43}", r"gh[pousr]_\w{36}", r"github_pat_\w{60}", r"glpat-[\w-]{20}", r"xox[abeprs]-[\w-]{20}",
    r"xapp-\d-[\w-]{40}", r"sk-ant-[\w-]{30}", r"sk-(?:proj|svcacct|admin)-[\w-]{40}", r"sk-or-v1-[a-f0-9]{64}",
    r"sk-[A-Za-z0-9]{32}", r"hf_[A-Za-z0-9]{30}", r"AIza[\w-]{35}", r"[rs]k_live_\w{20}", r"npm_\w{36}",
    r"pypi-AgE[\w-]{50}", r"hv[sbr]\.[\w-]{24}", r"do[opr]_v1_[a-f0-9]{64}", r"dckr_pat_[\w-]{27}",
    r"GOCSPX-[\w-]{28}", r"ya29\.[\w-]{50}", r"SG\.[\w-]{22}\.[\w-]{43}", r"fm[12][ar]?_[\w+/=-]{60}",
    r"shp(?:at|ca|pa|ss)_[a-f0-9]{32}", r"dapi[a-f0-9]{32}", r"ATATT3[\w=-]{100}", r"gsk_[A-Za-z0-9]{50}",
    r"r8_[A-Za-z0-9]{37}\b", r"nfp_[A-Za-z0-9]{36}", r"figd_[\w-]{40}", r"sbp_[a-f0-9]{40}", r"lin_api_[A-Za-z0-9]{40}",
    r"glsa_[A-Za-z0-9]{32}", r"ntn_[A-Za-z0-9]{40}", r"tskey-[a-z]{3,10}-[\w-]{20}", r"PMAK-[a-f0-9]{24}-[a-f0-9]{34}",
    r"NRAK-[A-Z0-9]{27}", r"pul-[a-f0-9]{40}", r"xai-[A-Za-z0-9]{70}", r"pplx-[A-Za-z0-9]{40}",
    r"bce-v3/ALTAK-\w{10,30}/[a-f0-9]{40}", r"hooks\.slack\.com/services/T\w+/B\w+/\w{20}",
    r"discord(?:app)?\.com/api/webhooks/\d+/[\w-]{60}",
    r"eyJ[\w-]{16,2000}\.eyJ(?!zdWIiOiIxMjM0NTY3ODkw)[\w-]{36,8000}\.[\w-]{20}",
)
_PREFIXES = (
    "llb_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox", "xapp-", "sk-", "hf_", "aiza",
    "rk_live_", "sk_live_", "npm_", "pypi-age", "hvs.", "hvb.", "hvr.", "doo_v1_", "dop_v1_", "dor_v1_", "dckr_pat_",
    "gocspx-", "ya29.", "sg.", "fm1", "fm2", "shpat_", "shpca_", "shppa_", "shpss_", "dapi", "atatt3", "gsk_", "r8_",
    "nfp_", "figd_", "sbp_", "lin_api_", "glsa_", "ntn_", "tskey-", "pmak-", "nrak-", "pul-", "xai-", "pplx-",
    "bce-v3/", "hooks.slack.com", "discord", "eyj",
)
_MADE_UP = re.compile(
    r"(?i)example|sample|dummy|fake|mock|test|change.?(?:me|this|it)|your|placeholder|redacted|xxx|12345|abcde|replace"
    r"|foobar|lorem|eyJzdWIiOiIxMjM0NTY3ODkw|\.\.\.|\*\*\*|[${%]\{|<%|^[<$%{]"
)
_WEAK = re.compile(
    r"(?i)(?:(?:my|the|a|some|secure|strong|super|db|app|secret|passw(?:or)?d|pass|pwd|token|key|admin|root|user|guest"
    r"|postgres|mysql|mariadb|redis|rabbit(?:mq)?|mongo|minio|dev(?:elopment)?|local(?:host)?|null|none|true|false|str"
    r"|string|value|todo|tbd|optional|required|prompt|foo|bar|baz|demo|hidden|empty)[-_]?){0,9}\d{0,4}[!.]?"
)
# fmt: on
_FEWEST_CHANGES = 4
_CHANGES = re.compile(r"(?<=[A-Za-z])[0-9]|(?<=[0-9])[A-Za-z]")
_CASES = re.compile(r"(?<=[a-z])[A-Z]|(?<=[A-Z])[a-z]")
_MARKS = re.compile(r"[!@#$%^&*()+=\[\]{}|;<>?~](?![?^A-Za-z0]-[a-z0-9Z])")
_PATHS = re.compile(r"(?:[A-Za-z_]\w{2,40}\.)+[A-Za-z_]\w{0,40}")
_KEYS = re.compile(
    r"(?i)(?:api|access|account|app|auth|client|consumer|crypt|encryption|master|private|secret|session|shared"
    r"|sign(?:ing)?|storage|subscription)[_.-]?$"
)
_NO_TOKENS = re.compile(
    r"(?i)(?:page|next|sync|continu(?:e|ation)|csrf|xsrf|cancell?ation|public|design|bos|eos|pad|unk)[_.-]?\w{0,3}$"
)


def _is_varied(found: re.Match[str]) -> bool:
    text = found.group()
    return "example" not in text.lower() and len(set(text[-20:])) >= _MOST_REPEATED


def _is_random(value: str) -> bool:
    """Whether chance has made a text: letters, digits and marks take turns in it more often than in names."""
    if len(set(value)) <= _MOST_REPEATED or _MADE_UP.search(value) or "://" in value or value.startswith(("/", "./")):
        return False
    changes = len(_CHANGES.findall(value))
    if changes >= _FEWEST_CHANGES:
        return changes >= 2 * _FEWEST_CHANGES or not _PATHS.fullmatch(value)
    turns = changes + len(_CASES.findall(value)) + 2 * len(_MARKS.findall(value))
    return changes > 0 and turns > 0.45 * len(value)  # names have a third


def _is_assigned_secret(found: re.Match[str]) -> bool:
    text, start = found.string, found.start()
    before = text[max(0, start - 20) : start]
    return (
        _is_random(found["quoted"] or found["bare"])
        and (found["word"].lower() != "key" or bool(_KEYS.search(before)))
        and not (found["word"].lower() == "token" and _NO_TOKENS.search(before))
        and "kind: SealedSecret" not in text
    )


def _is_password(found: re.Match[str]) -> bool:
    """Whether it is a password of somebody, rather than what stands for one."""
    value = found["value"].strip("\"'")
    return not (_MADE_UP.search(value) or _WEAK.fullmatch(value))


def _is_strong_password(found: re.Match[str]) -> bool:
    value = re.sub("%[0-9A-Fa-f]{2}", "", found["value"])
    return bool(re.search(r"[0-9!#$%&*+?^~]", value)) and _is_password(found)


@dataclass(frozen=True)
class _Kind:
    """A kind of secret.

    Args:
        what: it is called.
        form: of the secret itself.
        words: in lower case, any of which the text must have; it is what makes the search quick.
        place: what else the text must have.
        begins: the form begins at a `word`, or at the `line` which has one; None: anywhere.
        is_real: whether something of that form is one.
        of_people: whether it is a password as people make them up, also for templates.
    """

    what: str
    form: str
    words: tuple[str, ...]
    place: str | None = None
    begins: Literal["word", "line"] | None = None
    is_real: Callable[[re.Match[str]], bool] = _is_varied
    of_people: bool = False

    def lines(self, text: str, lower: str) -> Iterator[int]:
        """Yield the lines of a text that have one."""
        for found in self._found(text, lower):
            if self.is_real(found):
                if self.place and not re.search(self.place, text):
                    return
                yield text.count("\n", 0, found.start()) + 1

    def _found(self, text: str, lower: str) -> Iterator[re.Match[str]]:
        form = re.compile(self.form)
        if self.begins is None:
            if any(word in lower for word in self.words):
                yield from form.finditer(text)
            return
        for word in self.words:
            at = lower.find(word)
            while at >= 0:
                begin = at if self.begins == "word" else lower.rfind("\n", 0, at) + 1
                if found := form.match(text, begin):
                    yield found
                after = found.end() if found else at + 1
                end = after if self.begins == "word" else lower.find("\n", at)
                at = lower.find(word, end) if end >= 0 else -1


def _in_base64(text: bytes) -> str:
    """Return a pattern of what a text becomes in base64, wherever it begins."""
    forms = [base64.b64encode(bytes(skip) + text).decode() for skip in range(3)]
    return "|".join(form[-(-8 * skip // 6) :].rstrip("=")[:-1] for skip, form in enumerate(forms))


_KINDS = (
    _Kind(
        "a private key",
        rf"-----BEGIN (?:[A-Z0-9]{{1,20}} ){{0,3}}PRIVATE KEY(?: BLOCK)?-----{_BREAK}"
        rf"(?:[A-Z][A-Za-z-]{{1,30}}: [^\n]{{1,100}}{_BREAK}){{0,5}}{_BASE64}{{40}}",
        ("private key",),
    ),
    _Kind(
        "a private key",
        rf"LS0tLS1CRUdJTi[A-Za-z0-9+/]{{0,24}}(?:{_in_base64(b'PRIVATE KEY')}){_BASE64}{{40}}",
        ("ls0tls1crudjti",),
        begins="word",
    ),
    _Kind(
        "a private key",
        r"\"(?:d|k)\"\s*:\s*\"[\w-]{22,}\"",
        ('"d"', '"k"'),
        r"\"kty\"\s*:\s*\"(?:RSA|EC|OKP|oct)\"",
        begins="word",
    ),
    _Kind(
        "a static key of OpenVPN",
        rf"-----BEGIN OpenVPN Static key V1-----{_BREAK}[0-9a-f]{{32}}",
        ("openvpn static key",),
    ),
    _Kind("a key of PuTTY", rf"Private-Lines: \d+\r?\n{_BASE64}{{40}}", ("private-lines",), begins="line"),
    _Kind("a key of age", r"AGE-SECRET-KEY-(?:PQ-)?1[0-9A-Z]{50}", ("age-secret-key-",), begins="word"),
    _Kind(
        "a key of WireGuard",
        rf"(?i)[ \t]*(?:PrivateKey|PresharedKey)[ \t]*=[ \t]*{_BASE64}{{43}}=",
        ("privatekey", "presharedkey"),
        begins="line",
    ),
    _Kind(
        "a key of a wireless network",
        r"[ \t]*psk[ \t]*=[ \t]*(?P<value>[^\s;,()]{8,70})[ \t]*\r?(?:\n|\Z)",
        ("psk",),
        begins="line",
        is_real=_is_password,
    ),
    _Kind("a token", rf"(?<![A-Za-z0-9])(?:{'|'.join(_TOKENS)})", _PREFIXES, begins="word"),
    _Kind("a token", r"\b[A-Za-z0-9]{14}\.atlasv1\.[\w-]{60}", (".atlasv1.",)),
    _Kind("a token", r"\b\d{8,10}:AA[\w-]{33}(?![\w-])", (":aa",)),
    _Kind(
        "a token",
        r"\A\s*(?P<value>(?!(?:[0-9a-f]{40}|[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128})\s*\Z)[\w+/=.~-]{20,2000})\s*\Z",
        ("",),
        is_real=lambda found: _is_random(found["value"]),
    ),
    _Kind(
        "a secret",
        r"(?i)(?P<word>secret|token|passw(?:or)?d|passphrase|pwd|credentials?|authorization|session_?id|key)"
        r"(?:[_-]?(?:key|value|access|base|secret|token|data|live|prod|[0-9])){0,6}+"
        # Then what stands between a name and its value, which in lists may be a pair: name: TOKEN, value: …
        r"[\\\"'\])]{0,3}(?:,?\s{1,40}[\"']?value[\"']?)?[ \t]{0,20}(?:(?:=>|:=|[=:>])\s{0,20}|,[ \t]{0,4})"
        r"(?:(?:Bearer|Basic|token)[ \t]+)?"
        r"(?:\\?[\"'`](?:(?:Bearer|Basic|token)[ \t]+)?(?P<quoted>[^\s\"'`\\]{16,400}+)\\?[\"'`]"
        r"|(?P<bare>[\w+/=.~-]{16,200}+)(?![(\[{$:]))",
        (
            "secret",
            "token",
            "passw",
            "passphrase",
            "pwd",
            "credential",
            "authorization",
            "session_id",
            "sessionid",
            "key",
        ),
        begins="word",
        is_real=_is_assigned_secret,
    ),
    _Kind(
        "a password in an address",
        r"://[^\s:/@\"'`<>]{0,80}:(?P<value>[^\s:/@\"'`<>{\\]{4,200})@(?!localhost|127\.0\.0\.1|\[::1|[\w-]*example)",
        ("://",),
        begins="word",
        is_real=_is_strong_password,
    ),
    _Kind(
        "a password in an address",
        r"[ \t]*(?:--)?(?:push|(?:extra-)?index-)?url[ \t=]+https?://(?P<value>[^\s:/@]*:[^\s/@]+|\w{20,100})@",
        ("://",),
        r"(?m)^[ \t]*(?:\[(?:remote|submodule|url|global|install)\b|--(?:extra-)?index-url)",
        begins="line",
        is_real=_is_password,
    ),
    _Kind(
        "passwords that Git keeps",
        r"https?://[^\s:/@]+:[^\s/@]+@[\w.-]+(?::\d+)?/?\r?(?:\n|\Z)",
        ("://",),
        begins="line",
    ),
    _Kind(
        "a token of npm",
        r"(?:[^\n]{0,200}:|)_(?:authToken|auth|password)[ \t]*=[ \t]*[\"']?(?!\$)[\w+/=.-]{8}"
        r"|[ \t]*npmAuthToken:[ \t]*[\"']?(?!\$)[\w+/=.-]{8}",
        ("_auth", "_password", "npmauthtoken"),
        begins="line",
    ),
    _Kind("a login of netrc", r"(?m)^[ \t]*(?:machine\s+\S+|default)\s+login\s+\S+\s+password\s+\S+", ("login",)),
    _Kind("passwords of PostgreSQL", rf"\A(?:(?:#[^\n]*|[ \t]*)\n)*{_PGPASS}(?:\n+{_PGPASS})*\n*\Z", (":",)),
    _Kind(
        "a password of a program",
        r"[ \t]*password[ \t]*[=:][ \t]*(?P<value>[\"']?[^\s%$<{]\S{3,})",
        ("password",),
        r"(?mi)^\[(?:pypi|testpypi|distutils|client\S*|mysql\S*|auth|smtp\S*)\]",
        begins="line",
        is_real=_is_password,
    ),
    _Kind(
        "a login",
        r"(?i)[ \t{,]*[<\"'$]?\w{0,20}pass(?:wo?r?d|phrase|wd)?[>\"']?[ \t]*[:=]?[ \t]*"
        r"(?P<value>[\"']?[^\s\"'<>()\[\]{}$,;]{6,100})",
        ("pass",),
        r"(?mi)^[ \t{,]*[<\"'$]?(?:\w{0,12}host(?:name)?|server|address)[>\"']?[ \t]*[:=]?[ \t]*[\"']?"
        r"(?!localhost|127\.)[\w-]+\.[\w.-]+[\"'<,;]*[ \t\r]*(?:\n|<)",
        begins="line",
        is_real=_is_strong_password,
        of_people=True,
    ),
    _Kind(
        "a password in variables",
        r"[ \t]*(?:export[ \t]+)?[A-Z][A-Z0-9_]*(?:PASSW(?:OR)?D|PASS|SECRET|TOKEN|KEY)[ \t]*="
        r"[ \t]*(?P<value>[\"']?[^\s\"'$<{%#]{6,})",
        ("pass", "secret", "token", "key"),
        r"\A(?:[ \t]*(?:#[^\n]*|(?:export[ \t]+)?[A-Z][A-Z0-9_]*[ \t]*=[^\n]*)?(?:\n|\Z))+\Z",
        begins="line",
        is_real=_is_password,
        of_people=True,
    ),
    _Kind(
        "a secret of WordPress",
        r"define\(\s*['\"](?:\w*PASSWORD|(?:SECURE_)?AUTH_(?:KEY|SALT))['\"]\s*,\s*['\"](?P<value>[^'\"\n]{6,})['\"]",
        ("define(",),
        begins="word",
        is_real=_is_password,
        of_people=True,
    ),
    _Kind(
        "a password of Maven",
        r"\s*<(?:password|passphrase)>(?P<value>[^<\s${]{4,})</",
        ("<password>", "<passphrase>"),
        r"<servers>",
        begins="line",
        is_real=_is_password,
    ),
    _Kind(
        "a login of a registry",
        r"\"(?:auth|identitytoken)\"\s*:\s*\"[\w+/=.-]{8}",
        ('"auth"', '"identitytoken"'),
        r"\"auths\"\s*:\s*\{",
        begins="word",
    ),
    _Kind(
        "a key of Kubernetes",
        rf"client-key-data[\"']?\s*:\s*[\"']?{_BASE64}{{40}}",
        ("client-key-data",),
        begins="word",
    ),
    _Kind(
        "a login of Kubernetes",
        r"[ \t]*[\"']?(?:token|password)[\"']?:[ \t]*[\"']?(?P<value>[^\s\"'{$<]{8,})",
        ("token", "password"),
        r"(?m)^[ \t]*[\"']?kind[\"']?:[ \t]*[\"']?Config[\"']?,?[ \t]*$",
        begins="line",
        is_real=_is_password,
    ),
    _Kind(
        "a secret of Kubernetes",
        r"(?m)^(?:data|stringData):[ \t]*\n(?:[ \t]+[\w.-]+:[^\n]*\n){0,50}?[ \t]+[\w.-]+:[ \t]*[\"']?[^\s\"'{$<|>]{8}",
        ("kind: secret",),
        r"(?m)^kind:[ \t]*Secret[ \t]*$",
    ),
    _Kind(
        "a state of Terraform", r"\"lineage\"\s*:\s*\"[0-9a-f-]{36}\"", ('"lineage"',), '"terraform_version"', "word"
    ),
    _Kind(
        "a cookie",
        r"(?:#HttpOnly_)?\.?[\w.-]+\t(?:TRUE|FALSE)\t/\S*\t(?:TRUE|FALSE)\t\d+\t\S+\t\S{8}",
        ("\ttrue\t", "\tfalse\t"),
        begins="line",
    ),
    _Kind("a login of Firefox", r"\"encryptedPassword\"\s*:\s*\"[\w+/=]{20}", ('"encryptedpassword"',), begins="word"),
    _Kind(
        "hashes of passwords",
        r"[\w.@-]+:(?:\$(?:1|apr1|2[aby]|5|6|y|7|argon2id?|pbkdf2[\w-]*)\$[./A-Za-z0-9$=,+-]{20}|\{SHA\}[\w+/]{27}=)",
        (":$", ":{sha}"),
        begins="line",
    ),
)


def _any(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Return what fits a name after its folder and a slash: patterns without a slash stand for any folder."""
    return re.compile("|".join(translate(pattern if "/" in pattern else f"*/{pattern}") for pattern in patterns))


_SECRET, _HARMLESS, _TEMPLATE = map(_any, (_SECRETS, _NOT_SECRET, _TEMPLATES))


def is_secret_name(name: str, parent: str) -> bool:
    """Whether a file or folder is secret, judged by its name.

    Args:
        name: its name.
        parent: the name of the folder that it is in.
    """
    parent = _judged(parent)
    names = [f"{parent}/{name}" for name in _originals(_judged(name))]
    return any(map(_SECRET.match, names)) and not any(map(_HARMLESS.match, names))


def find_secret(text: str, name: str = "") -> tuple[str, int] | None:
    """Return what kind of secret a text holds, and in which line it begins; None: none that is known.

    Args:
        text: what a file says.
        name: of the file; those of templates have passwords that nobody has.
    """
    lower = text.replace("\u0130", "i").lower()  # the only character that becomes two
    is_template = _TEMPLATE.match(f"/{name.lower()}")
    kinds = (kind for kind in _KINDS if not (is_template and kind.of_people))
    return next(((kind.what, line) for kind in kinds for line in kind.lines(text, lower)), None)


def _judged(name: str) -> str:
    """Return a name as it is judged: some file systems ignore its case, forms and characters that cannot be seen."""
    if not name.isascii():
        import unicodedata  # noqa: PLC0415 - seldom needed

        name = unicodedata.normalize("NFKC", name)
    return name.casefold().encode("ascii", "ignore").decode()


def _originals(name: str) -> list[str]:
    """Return the name, and those of what it may be a copy of."""
    names = [name]
    while (shorter := _COPY.sub("", name)) != name:
        name = shorter
        names += [name, name.lstrip(".")]  # vi's are hidden
    return names
