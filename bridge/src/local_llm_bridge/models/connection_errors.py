"""Why no connection came about, in words: what TLS did not like, which part the proxy had in it, and what to set."""

from __future__ import annotations

import datetime as dt
import os
import ssl
import stat
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from local_llm_bridge.texts import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from local_llm_bridge.proxy import Proxy

# OpenSSL's X509_V_ERR_…, which Python passes on as numbers.
_OTHER_SIGNATURE, _NOT_YET_VALID, _EXPIRED = 7, 9, 10
_SELF_SIGNED, _SELF_SIGNED_IN_CHAIN, _NO_ISSUER, _NOT_VERIFIED = 18, 19, 20, 21
_OTHER_NAME, _OTHER_ADDRESS = 62, 64
_UNKNOWN_AUTHORITY = {
    _OTHER_SIGNATURE: "its certificate is signed by an authority that only has the name of one that this machine knows",
    _SELF_SIGNED: "its certificate is self-signed",
    _SELF_SIGNED_IN_CHAIN: "its certificate is signed by an authority that this machine does not know",
    _NO_ISSUER: "its certificate is signed by an authority that this machine does not know",
    _NOT_VERIFIED: "its certificate is signed by an authority that this machine does not know",
}
_SPEAKS_NO_TLS = (
    "it does not speak TLS at this port",
    "Write http:// instead of https:// in its address, or name the port on which it speaks TLS.",
)
_CLOSED = (
    "it closed the connection in the TLS handshake",
    "Does it speak TLS at this port? Its log may say why it closed it.",
)
_ALERT = "\\x15\\x03"
"""How an alert of TLS begins, as the parser of HTTP shows it."""
_REASONS = {
    "WRONG_VERSION_NUMBER": _SPEAKS_NO_TLS,
    "HTTP_REQUEST": _SPEAKS_NO_TLS,
    "UNKNOWN_PROTOCOL": _SPEAKS_NO_TLS,
    "RECORD_LAYER_FAILURE": _SPEAKS_NO_TLS,
    "PACKET_LENGTH_TOO_LONG": _SPEAKS_NO_TLS,
    "UNEXPECTED_EOF_WHILE_READING": _CLOSED,
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": (
        "it wants a TLS certificate from its clients, and the bridge has none",
        "Let it know the bridge by a key instead.",
    ),
    "UNRECOGNIZED_NAME": ("it has no TLS host of this name", "Use the name in its address that its certificate has."),
    "HANDSHAKE_FAILURE": (
        "it refused the TLS handshake: no cipher in common, or it wants a certificate from its clients",
        "Its log says which.",
    ),
    "PROTOCOL": ("it and this machine have no version of TLS in common", "Allow TLS 1.2 or 1.3 there."),
}


def described(error: BaseException, url: str, proxy: Proxy | None) -> str | None:
    """Say what failed in TLS, or on the way to or at the proxy, and what to do; None: it was neither.

    Args:
        error: aiohttp's, of a request that got no answer.
        url: of the engine.
        proxy: which the request was to go through.
    """
    who = f"The model server at {url}"
    host = urlsplit(url).hostname or ""
    at_proxy = proxy is not None and _is_at_proxy(error, proxy)
    if proxy and at_proxy:
        who, host = f"The proxy {proxy.name}, on the way to {url},", urlsplit(proxy.url).hostname or ""
    if failed := _tls_error(error):
        why, todo = _certificate(failed, host) if isinstance(failed, ssl.SSLCertVerificationError) else _tls(failed)
        return f"{who} cannot be reached over TLS: {why}. {todo}"
    if proxy and at_proxy:
        return f"{who} cannot be reached: {_reason(error)}. {_hint(proxy, url)}"
    if proxy and (status := _refusal_of_tunnel(error)):
        return f"The proxy {proxy.name} refused to connect to {url} ({status}). {_hint(proxy, url, status)}"
    why = _mismatch(error, url)
    return f"{who} {why}" if why else None


def _mismatch(error: BaseException, url: str) -> str:
    """Return words for an end without a TLS error that may still come of TLS at one side only; empty: it does not."""
    if not url.startswith("https://"):
        answers_in_tls = any(_ALERT in str(inner) for inner in _chain(error))
        return (
            "answers in TLS at this port. Write https:// instead of http:// in its address." if answers_in_tls else ""
        )
    if isinstance(error, TimeoutError):
        return "cannot be reached: no answer in time. Is its host up, and does it speak TLS at this port?"
    failed = getattr(error, "os_error", None)
    was_closed = isinstance(failed, ConnectionError) and not isinstance(failed, ConnectionRefusedError)
    return f"cannot be reached over TLS: {'. '.join(_CLOSED)}" if was_closed else ""


def proxy_answered(status: int, headers: Mapping[str, str], body: bytes) -> bool:
    """Whether the refusal of a request that went through a proxy is the proxy's own: engines answer in JSON.

    Args:
        status: HTTP's.
        headers: the answer's, their names in lower case.
        body: the answer's, or its beginning.
    """
    is_json = body.lstrip()[:1] in {b"{", b"["}
    return status == 407 or (status in {400, 403, 502, 503, 504} and not is_json) or "x-squid-error" in headers  # noqa: PLR2004


def refused_by_proxy(proxy: Proxy, url: str, said: str) -> str:
    """Say that the proxy answered in the engine's place.

    Args:
        proxy: which.
        url: of the engine.
        said: status and words.
    """
    return f"The proxy {proxy.name} answered in the place of {url} ({said}). {_hint(proxy, url, said)}"


def _hint(proxy: Proxy, url: str, said: str = "") -> str:
    host = urlsplit(url).hostname
    if "407" in said:
        what = "It does not know this user and password" if proxy.auth else "It wants a user and a password"
        return f"{what}: {proxy.variable} takes them as http://user:password@host:port. NO_PROXY={host} goes round it."
    return f"{proxy.variable} names the proxy; if {host} is to be reached without it, put {host} into NO_PROXY."


def _is_at_proxy(error: BaseException, proxy: Proxy) -> bool:
    """Whether an error is about the connection to the proxy itself."""
    parts = urlsplit(proxy.url)
    if isinstance(error, TimeoutError):
        return True  # the only connection that is made is to the proxy
    return (getattr(error, "host", None), getattr(error, "port", None)) == (parts.hostname, parts.port) or (
        type(error).__name__ == "ClientProxyConnectionError"
    )


def _refusal_of_tunnel(error: BaseException) -> str:
    """Return the status with which a proxy refused to connect; empty: it did not."""
    import aiohttp  # noqa: PLC0415 - not needed to start

    return f"HTTP {error.status}: {error.message}" if isinstance(error, aiohttp.ClientHttpProxyError) else ""


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    """Return the TLS error within an error."""
    for inner in _chain(error):
        # aiohttp's errors are of these types, too, but hold what they are about.
        for found in (getattr(inner, "certificate_error", None), getattr(inner, "os_error", None), inner):
            if isinstance(found, ssl.SSLError):
                return found
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str:
    """Return the system's word for what failed: aiohttp's own would show addresses as it was given them."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    failed = getattr(error, "os_error", error)
    number = getattr(failed, "errno", None)
    if isinstance(number, int) and number > 0:
        return os.strerror(number)
    return (getattr(failed, "strerror", None) or type(failed).__name__)[:200]


def _certificate(error: ssl.SSLCertVerificationError, host: str) -> tuple[str, str]:
    today = f"This machine's date is {dt.datetime.now(dt.UTC):%Y-%m-%d}"
    match error.verify_code:
        case code if code in _UNKNOWN_AUTHORITY:
            return _UNKNOWN_AUTHORITY[code], _trust(code)
        case code if code in {_OTHER_NAME, _OTHER_ADDRESS}:
            todo = f"Use the name in its address that its certificate has, or give it a certificate for {host}."
            return f"its certificate is not for {host}", todo
        case code if code == _EXPIRED:
            return "its certificate has expired", f"Renew the certificate there. {today}: is that right?"
        case code if code == _NOT_YET_VALID:
            return (
                "its certificate is not valid yet",
                f"{today}: is that right? Else correct the date of the other one.",
            )
        case _:
            return f"its certificate is refused: {error.verify_message}", "Give it another certificate."


def _trust(code: int) -> str:
    """Say how to make an authority known.

    Args:
        code: OpenSSL's, why it is not.
    """
    todo = "Set SSL_CERT_FILE to a PEM file with the authority's certificate, and start the bridge again"
    for variable, kind in (("SSL_CERT_FILE", "file"), ("SSL_CERT_DIR", "folder")):
        name = os.environ.get(variable)
        if not name:
            continue
        for part in name.split(os.pathsep) if kind == "folder" else [name]:
            if problem := _problem_of(part, kind):
                return f"{variable} names {printable(part)}, {problem}: correct it, and start the bridge again."
        todo = f"{variable} names {printable(name)}, which does not hold the authority: add it there, and start the "
        todo += "bridge again"
    chain = (
        " If it is known already, have the server send its whole chain." if code in {_NO_ISSUER, _NOT_VERIFIED} else ""
    )
    return f"{todo}.{chain}"


def _problem_of(path: str, kind: str) -> str:
    """Say why a file or a folder of certificates is of no use; empty: it can be read."""
    try:
        if stat.S_ISDIR(Path(path).stat().st_mode) != (kind == "folder"):
            return f"which is a {'file' if kind == 'folder' else 'folder'}"
        if kind == "folder":
            os.scandir(path).close()
        else:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except FileNotFoundError:
        return f"and there is no such {kind}"
    except ssl.SSLError:
        return "which holds no certificate in PEM, or a broken one"
    except OSError as error:
        return f"which cannot be read ({error.strerror})"
    return ""


def _tls(error: ssl.SSLError) -> tuple[str, str]:
    said = error.reason or ("UNEXPECTED_EOF_WHILE_READING" if isinstance(error, ssl.SSLEOFError) else "")
    for reason, words in _REASONS.items():
        if reason in said:
            return words
    return f"TLS failed: {said.lower().replace('_', ' ') or 'no reason was given'}", "Its log may say why."
