"""Downloads the files of one model; an interrupted download goes on where it stopped.

Run by systemd as ``model-store@MODEL.service``, as a user who can write to the staging folder only. It knows nothing
of models: it gets a job, a list of URLs with paths and sizes. Whether the content is right is decided afterwards.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

CHUNK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without a byte
PATIENCE = 8  # attempts in a row that bring no byte; the waits between them add up to about four minutes
NOT_WORTH_A_RETRY = (400, 401, 403, 404, 405, 410, 451)


class FetchError(Exception):
    """The download cannot go on; the text says what to do."""


class Interrupted(Exception):
    """The connection broke; another attempt goes on from here."""


@dataclass(frozen=True)
class File:
    """One file of the job.

    Attributes:
        url: Where it comes from.
        path: Where it is staged.
        size: Bytes, as the manifest has it.
        token: Whether the hub's token goes with the request.
    """

    url: str
    path: Path
    size: int
    token: bool


class SameHostAuthorization(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps the token away from any other host than the one it is meant for."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Make the request that follows a redirect."""
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            new.remove_header("Authorization")
        return new


def explain(file: File, status: int) -> str:
    """What a status that no retry will mend means for the operator."""
    advice = {
        401: "the repository is gated or private, or does not exist; set model_store_hf_token",
        403: "accept the model's terms on the hub, and set model_store_hf_token",
        404: "check repository, revision and the file's path",
    }
    return f"{file.url}: HTTP {status}; {advice.get(status, 'the hub refuses to send this file')}"


def attempt(file: File, token: str | None) -> None:
    """Ask for the bytes that are missing and append them.

    Args:
        file: What to download.
        token: Bearer token for its hub.

    Raises:
        FetchError: The hub will not give this file.
        Interrupted: The connection broke, or the hub is busy.
    """
    have = file.path.stat().st_size if file.path.exists() else 0
    headers = {"User-Agent": "local-llm-fleet", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    if token and file.token:
        headers["Authorization"] = f"Bearer {token}"
    opener = urllib.request.build_opener(SameHostAuthorization)
    try:
        request = urllib.request.Request(file.url, headers=headers)  # noqa: S310 - the role lets only http(s) through
        with opener.open(request, timeout=TIMEOUT) as response:
            resumed = response.status == http.client.PARTIAL_CONTENT
            start = have if resumed else 0
            served = response.headers.get("Content-Range", "")
            if resumed and not served.startswith(f"bytes {have}-"):
                raise FetchError(f"{file.url}: asked for the bytes from {have}, got {served!r}; use another mirror")
            length = response.headers.get("Content-Length")
            if length is not None and start + int(length) != file.size:
                raise FetchError(
                    f"{file.url}: the hub has {start + int(length)} bytes, but the manifest says {file.size}; "
                    "check repository, revision and size"
                )
            with file.path.open("ab" if resumed else "wb") as target:
                while chunk := response.read1(CHUNK):  # what has come is kept, however the connection ends
                    target.write(chunk)
                    if target.tell() > file.size:
                        raise FetchError(f"{file.url}: the hub sends more than the {file.size} bytes of the manifest")
                target.flush()
                os.fsync(target.fileno())
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            file.path.unlink()
            raise Interrupted("the hub has fewer bytes than were downloaded; starting again") from error
        if error.code in NOT_WORTH_A_RETRY:
            raise FetchError(explain(file, error.code)) from error
        raise Interrupted(f"HTTP {error.code}") from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise Interrupted(str(getattr(error, "reason", error)) or type(error).__name__) from error
    if file.path.stat().st_size < file.size:
        raise Interrupted("the connection was closed early")


def download(file: File, token: str | None) -> None:
    """Download one file, through as many interruptions as it takes while there is progress.

    Args:
        file: What to download.
        token: Bearer token for its hub.

    Raises:
        FetchError: It cannot be had.
    """
    fruitless = 0
    while (before := file.path.stat().st_size if file.path.exists() else 0) != file.size:
        if before > file.size:
            file.path.unlink()
        try:
            attempt(file, token)
        except Interrupted as error:
            after = file.path.stat().st_size if file.path.exists() else 0
            fruitless = 0 if after > before else fruitless + 1
            if fruitless >= PATIENCE:
                raise FetchError(
                    f"{file.url}: {error}, {fruitless} times in a row; {after} of {file.size} bytes are here. "
                    "Check the network or the mirror and run again: the download goes on from there"
                ) from error
            wait = min(60, 2**fruitless)
            print(f"{file.url}: {error} at {after} of {file.size} bytes; going on in {wait} s", flush=True)
            time.sleep(wait)


def main(argv: list[str], environment: Mapping[str, str]) -> int:
    """Do one job.

    Args:
        argv: The path of the job.
        environment: May name ``CREDENTIALS_DIRECTORY``, with ``hf-token`` in it.

    Returns:
        Exit status.
    """
    credential = Path(environment.get("CREDENTIALS_DIRECTORY", "/nonexistent")) / "hf-token"
    token = credential.read_text().strip() if credential.exists() else None
    job = json.loads(Path(argv[0]).read_text())
    try:
        for entry in job:
            file = File(entry["url"], Path(entry["path"]), entry["size"], entry["token"])
            download(file, token)
            print(f"{file.url}: complete, {file.size} bytes", flush=True)
    except FetchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
