"""Ask the gateway, as a developer's Claude Code would, whether it lets the developer in and serves the models."""

from __future__ import annotations

import json
import socket
import ssl
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT = 20  # seconds
QUOTE = 200  # characters of the gateway's own words


def problem_of(url: str, models: list[str], token: str, ca_file: Path) -> str:
    """Return what keeps Claude Code from running on the models, and what to do; nothing if all is well.

    Args:
        url: the gateway's address, without /v1.
        models: names that Claude Code will ask for.
        token: the developer's.
        ca_file: certificates to trust besides the system's, if there is such a file.
    """
    address = f"{url.rstrip('/')}/v1/models"
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"})  # noqa: S310 - checked
    try:
        trusted = ssl.create_default_context()
        # Python 3.13 is stricter with a CA than Claude Code, which is the one that has to trust it.
        trusted.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if ca_file.exists():
            trusted.load_verify_locations(ca_file)
        # The gateway is in the team's own network: no proxy of this process's environment is asked.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusted)
        )
        with opener.open(request, timeout=TIMEOUT) as response:
            served = [model["id"] for model in json.load(response)["data"]]
    except urllib.error.HTTPError as error:
        return f"{address} answers {error.code}{_advice(error)}"
    except (urllib.error.URLError, OSError) as error:
        return f"{address} cannot be reached: {_reason(error)}"
    except (ValueError, KeyError, TypeError):
        return f"{address} answers with something that is not a list of models; set the gateway's address"
    missing = [model for model in models if model not in served]
    if missing:
        return (
            f"{address} does not list the model {missing[0]!r}; it has: {', '.join(served) or 'none'}. "
            "Serve it, or set the name of one of these"
        )
    return ""


def _advice(error: urllib.error.HTTPError) -> str:
    with error:
        words = error.read(4096).decode(errors="replace").strip()[:QUOTE]
    if error.code in (401, 403):
        return f": it does not know this developer's token, or has blocked it; make a new one. It says: {words}"
    if error.code == 404:
        return f": this is no gateway to a model, or its address has too much or too little. It says: {words}"
    return f". It says: {words}"


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({cause.verify_message}); give the CA that has signed it, "
            "and use the name that stands in it"
        )
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed ({cause.reason or cause}); is this an https address?"
    if isinstance(cause, socket.gaierror):
        return f"its name is not known here ({cause.strerror}); is it in the DNS that this host asks?"
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused; is the gateway running, and is this its port?"
    if isinstance(cause, TimeoutError):
        return f"no answer within {TIMEOUT} s; does a firewall let this host in?"
    return str(cause)
