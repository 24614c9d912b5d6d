"""Ansible module: refuses a controller without the secrets that its fleet already has, before others are made."""

from __future__ import annotations

import base64
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
except ImportError:
    MISSING = traceback.format_exc()
else:
    MISSING = ""

DOCUMENTATION = r"""
module: controller_secrets
short_description: What this controller lacks of the secrets that the fleet has
description:
  - The first run makes a private CA, and C(developer.yml) makes tokens, in files of the controller. Another controller
    without these files would make others, and no developer could come in. This compares them with what the gateways
    have. It changes nothing.
author: local-llm-fleet
options:
  ca:
    description: Folder of the private CA, or empty where the gateways have certificates of somebody else.
    type: str
    required: true
  ca_key:
    description: Whether the key of that CA is needed.
    type: bool
    default: true
  tokens:
    description: Folder of the developers' tokens, or empty where there is none.
    type: str
    required: true
  developers:
    description: Names of the developers that the gateways may know besides those of the folder.
    type: list
    elements: str
    required: true
  all_developers:
    description: Refuse every other developer that a gateway knows, not only where the folder is missing.
    type: bool
    default: false
  seen:
    description: Results of M(ansible.builtin.slurp) of the gateways' files; C(item) is the gateway and the file.
    type: list
    elements: dict
    required: true
"""

ISSUER = "CA of "  # how roles/gateway names a private CA
TRUSTED = "~/.config/local-llm-fleet/local-llm-ca.pem"
DOCS = "docs/secrets.md says more. Nothing was changed."


def text_of(file: Path) -> bytes:
    """What a file holds; nothing if there is none.

    Raises:
        OSError: It cannot be read.
    """
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def key_of(certificate: x509.Certificate) -> str:
    """The identifier of a CA's key, as OpenSSL shows it."""
    return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest.hex(":").upper()


def issuer_of(certificate: x509.Certificate) -> str:
    """The private CA that has signed a certificate, with the identifier of its key; empty if somebody else has."""
    issuer = [str(part.value) for part in certificate.issuer]
    if len(issuer) != 1 or not issuer[0].startswith(ISSUER):
        return ""
    keys = [part.value.key_identifier for part in certificate.extensions if part.oid == x509.AuthorityKeyIdentifier.oid]
    return f"{issuer[0]}, key {keys[0].hex(':').upper() if keys else 'unknown'}"


def authorities(folder: Path) -> list[x509.Certificate]:
    """The CA of this controller, and while it is replaced the next or the former one.

    Args:
        folder: Where they are.

    Raises:
        OSError: They cannot be read.
        ValueError: What is there is no certificate.
    """
    texts = [text_of(file) for file in (folder / "ca.pem", folder / "next/ca.pem", folder / "former/ca.pem")]
    return [x509.load_pem_x509_certificate(text) for text in texts if text]


def is_signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether a CA has signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def key_problems(folder: Path) -> Iterator[str]:
    """Why the CA of this controller could not sign.

    Args:
        folder: Where it is.

    Raises:
        OSError: Its key or certificate cannot be read.
        ValueError: Its key is none.
    """
    certificate, key = text_of(folder / "ca.pem"), text_of(folder / "ca.key")
    if not certificate:
        return
    if not key:
        yield (
            f"{folder}/ca.pem is here without its key, {folder}/ca.key. Copy that from the controller that made both; "
            "if it is lost, run playbooks/rotate_ca.yml -e new=ca"
        )
    elif load_pem_private_key(key, None).public_key() != x509.load_pem_x509_certificate(certificate).public_key():
        yield f"{folder}/ca.key is not the key of {folder}/ca.pem. Copy both from the controller that made them"


def ca_problems(folder: Path, seen: dict[str, bytes]) -> Iterator[str]:
    """Gateways whose certificate is of a private CA that is not here.

    Args:
        folder: Where the CA of this controller is.
        seen: Gateway and path of each certificate, and that.

    Raises:
        OSError: The CA cannot be read.
        ValueError: It is none.
    """
    here = authorities(folder)
    certificates = {place: x509.load_pem_x509_certificate(text) for place, text in seen.items()}
    others = [
        f"{place} ({issuer})"
        for place, certificate in certificates.items()
        if (issuer := issuer_of(certificate)) and not any(is_signed_by(certificate, authority) for authority in here)
    ]
    if others:
        has = f"another one (key {', '.join(map(key_of, here))})" if here else "none"
        yield (
            f"The fleet has a private CA, which has signed {', '.join(others)}; this controller has {has} in {folder}. "
            f"With another CA no developer could come in. Copy {folder.parent}, which has other secrets, too, from the "
            "controller that made it; `openssl x509 -noout -ext subjectKeyIdentifier -in ca/ca.pem` shows the key "
            f"there. If it is lost, copy {TRUSTED} of a developer to {folder}/ca.pem and run "
            "playbooks/rotate_ca.yml -e new=ca. If it is a gateway that has an old certificate, move that away"
        )


def token_problems(folder: Path, developers: list[str], *, others: bool, seen: dict[str, str]) -> Iterator[str]:
    """Developers whose tokens would end, as this controller does not have them.

    Args:
        folder: Where tokens are.
        developers: Names that are known besides those of the folder.
        others: Whether a folder that is there may not lack one either.
        seen: Gateways, each with its map of hashes to names.

    Raises:
        OSError: The folder cannot be read.
    """
    try:
        here = {file.stem for file in folder.iterdir() if file.suffix == ".json"}
        if not others:
            return
        end = "If they shall end, run playbooks/gateway.yml first"
    except FileNotFoundError:
        here = set()
        end = f"If they shall end, make it: mkdir -m 700 -p {folder}"
    for host, text in seen.items():
        names = {line.partition(" ")[2] for line in text.splitlines() if not line.startswith("#")}
        if unknown := sorted(names - here - {"", *developers}):
            yield (
                f"{host} knows tokens of {', '.join(unknown)}, which would end: they are neither in fleet_developers "
                f"nor in fleet_tokens of this controller, {folder}. Copy that folder from the controller that made it. "
                f"{end}"
            )


def problems(given: dict[str, Any]) -> Iterator[str]:
    """What keeps this controller from changing the fleet's secrets.

    Args:
        given: The module's arguments.
    """
    files = {tuple(entry["item"]): base64.b64decode(entry["content"]) for entry in given["seen"] if "content" in entry}
    if given["ca"]:
        folder = Path(given["ca"])
        silent = sorted({entry["item"][0] for entry in given["seen"] if entry.get("unreachable")})
        try:
            yield from ca_problems(
                folder, {f"{host}:{path}": text for (host, path), text in files.items() if "pem" in path}
            )
            if given["ca_key"]:
                yield from key_problems(folder)
            if silent and not authorities(folder):
                yield (
                    f"This controller has no CA in {folder}, and {', '.join(silent)} cannot be asked whether the fleet "
                    "has one. Copy it from the controller that made it, or run this when they can be reached"
                )
        except OSError as error:
            yield f"The private CA cannot be read: {error}. Run this as the user to whom {folder} belongs"
        except ValueError as error:
            yield f"The private CA in {folder} is not one: {error}. Copy it from the controller that made it"
    if given["tokens"]:
        maps = {host: text.decode() for (host, path), text in files.items() if path.endswith(".map")}
        try:
            yield from token_problems(
                Path(given["tokens"]), given["developers"], others=given["all_developers"], seen=maps
            )
        except OSError as error:
            yield f"fleet_tokens cannot be read: {error}. Run this as the user to whom {given['tokens']} belongs"


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "ca": {"type": "str", "required": True},
            "ca_key": {"type": "bool", "default": True, "no_log": False},
            "tokens": {"type": "str", "required": True, "no_log": False},
            "developers": {"type": "list", "elements": "str", "required": True},
            "all_developers": {"type": "bool", "default": False},
            "seen": {"type": "list", "elements": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    if MISSING:
        module.fail_json(msg=missing_required_lib("cryptography"), exception=MISSING)
    if found := list(problems(module.params)):
        module.fail_json(msg="\n".join([*found, DOCS]))
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
