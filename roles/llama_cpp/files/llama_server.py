"""Runs llama.cpp's HTTP server for one model as a service of systemd.

The settings are a small JSON file that the role writes, the key comes from systemd (``LoadCredential=``), and systemd
hears READY only when the server has answered that it is healthy.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HEALTH_TIMEOUT = 30  # seconds


class ConfigError(ValueError):
    """The settings are not usable; the text says what is wrong."""


@dataclass(frozen=True)
class Config:
    """Settings of one model.

    Attributes:
        name: What the server calls the model.
        path: GGUF file.
        address: IP address to listen on.
        port: TCP port to listen on.
        context: Tokens of one request, prompt and answer together.
        parallel: Requests at once; each has a context of its own.
        threads: CPU threads, 0 for all CPUs that the service may use.
    """

    name: str
    path: str
    address: str
    port: int
    context: int
    parallel: int
    threads: int

    @classmethod
    def read(cls, file: Path) -> Config:
        """Read the settings.

        Args:
            file: JSON file with exactly the keys above.

        Raises:
            ConfigError: The file cannot be read, or a key is missing, unknown or of the wrong type.
        """
        try:
            settings = json.loads(file.read_text())
            config = cls(**settings)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{file}: {error}") from error
        for key, expected in cls.__annotations__.items():
            value = settings[key]
            if type(value).__name__ != expected:
                raise ConfigError(f"{file}: {key} is {value!r}; expected {expected}")
        return config


def read_keys(environment: Mapping[str, str]) -> list[str]:
    """The key that clients have to send; while it is replaced, the former one as well.

    Args:
        environment: With ``CREDENTIALS_DIRECTORY``, where systemd puts ``api-key``, a key in each line.

    Raises:
        ConfigError: There is no key. The server would otherwise answer everybody.
    """
    folder = environment.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise ConfigError("CREDENTIALS_DIRECTORY is not set; run this as a service with LoadCredential=api-key:…")
    keys = (Path(folder) / "api-key").read_text().split()
    if not keys:
        raise ConfigError(f"{folder}/api-key is empty")
    return keys


def notify(state: str, environment: Mapping[str, str]) -> None:
    """Tell systemd about the service, if it listens.

    Args:
        state: Assignments of sd_notify(3).
        environment: May have ``NOTIFY_SOCKET``.
    """
    address = environment.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(re.sub("^@", "\0", address))
            sender.sendall(state.encode())


def wait_for_stop() -> None:
    """Sleep until systemd or a user at a terminal wants the service to stop."""
    # Threads of llama.cpp may get the signal; its C handler wakes this thread through the socket in any case.
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    receiver.recv(1)


def serve(config: Config, keys: list[str], environment: Mapping[str, str]) -> None:
    """Load the model and serve it until the service is stopped.

    Args:
        config: The model's settings.
        keys: What clients send as bearer token or ``x-api-key``, any of them.
        environment: The process's environment.

    Raises:
        RuntimeError: llama.cpp could not load the model or bind the address; its own words are in the journal.
        OSError: The server is not healthy.
    """
    import xllamacpp  # 100 MB of library, not needed to check settings

    params = xllamacpp.CommonParams()
    params.model.path = config.path
    params.model_alias = {config.name}
    params.hostnames = [config.address]
    params.port = config.port
    params.api_keys = keys
    # llama.cpp divides n_ctx among the slots. A shared cache (kv_unified) would need less memory, but could end an
    # answer half-way because other requests have grown.
    params.n_ctx = config.context * config.parallel
    params.n_parallel = config.parallel
    params.kv_unified = False
    params.cpuparams.n_threads = config.threads or len(os.sched_getaffinity(0))
    # Prompts that lost their slot are kept here. The default limit of 8 GiB is more than some hosts have.
    params.cache_ram_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8 // 2**20
    params.n_gpu_layers = 0
    params.fit_params = False  # do what the settings say, or fail
    params.offline = True
    params.use_jinja = True  # the model's own chat template, which tool calls need
    params.endpoint_metrics = True
    params.endpoint_slots = False  # shows other people's prompts
    params.ui = False
    params.cors_origins = ""  # no web page has business here

    notify("STATUS=Loading the model", environment)
    server = xllamacpp.Server(params)
    with urllib.request.urlopen(f"{server.listening_address}/health", timeout=HEALTH_TIMEOUT):  # noqa: S310 - http
        pass
    notify(f"READY=1\nSTATUS=Serving {config.name} on {server.listening_address}", environment)
    wait_for_stop()
    notify("STOPPING=1\nSTATUS=Stopping", environment)
    del server


def main(argv: list[str], environment: Mapping[str, str]) -> int:
    """Run the server, or check its settings.

    Args:
        argv: ``[--check] CONFIG``.
        environment: The process's environment.

    Returns:
        Exit status.
    """
    *options, file = argv
    try:
        config = Config.read(Path(file))
        if options == ["--check"]:
            return 0
        serve(config, read_keys(environment), environment)
    except (ConfigError, OSError, RuntimeError) as error:
        print(f"llama_server: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
