"""Runs ``vllm serve`` with the keys that systemd hands over, one in each line. Others can read a command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    """Give vLLM the unit's arguments and the keys; while a key is replaced, there are two."""
    from vllm.entrypoints.cli.main import main as vllm  # vLLM's other processes read this file, too, and need no CLI

    if not (keys := (Path(os.environ["CREDENTIALS_DIRECTORY"]) / "api-key").read_text().split()):
        sys.exit("serve: there is no key, and without one vLLM would answer everybody")
    sys.argv = ["vllm", "serve", *sys.argv[1:], "--api-key", *keys]
    vllm()


if __name__ == "__main__":
    main()
