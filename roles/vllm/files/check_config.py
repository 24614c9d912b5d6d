"""Checks the settings of one model with the parser of the vLLM that will read them: nothing is loaded or started."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from vllm.entrypoints.cli.serve import cmd_init
from vllm.utils.argparse_utils import FlexibleArgumentParser


def main() -> None:
    """Parse the file as ``vllm serve --config`` would; its parser exits with 2 and its own words if that fails."""
    parser = FlexibleArgumentParser(prog="vllm")
    commands = cmd_init()
    subparsers = parser.add_subparsers(dest="subparser")
    for command in commands:
        command.subparser_init(subparsers)
    with tempfile.TemporaryDirectory() as folder:
        # vLLM wants this suffix, and Ansible's temporary files do not always have it.
        config = Path(folder) / "config.yaml"
        shutil.copyfile(sys.argv[1], config)
        args = parser.parse_args(["serve", "--config", str(config)])
    for command in commands:
        command.validate(args)


if __name__ == "__main__":
    main()
