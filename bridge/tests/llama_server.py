"""llama.cpp's HTTP server with one model, until it is killed. Usage: llama_server.py GGUF NAME PORT KEY."""

import sys
import threading

import xllamacpp


def main() -> None:
    """Start the server and say where it listens."""
    gguf, name, port, key = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.model_alias = {name}
    params.hostnames = ["127.0.0.1"]
    params.port = int(port)
    params.api_keys = [key]
    params.n_ctx = 4096
    params.n_parallel = 2
    params.use_jinja = True
    params.offline = True
    params.endpoint_metrics = True
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)  # noqa: T201 - the fixture waits for this line
    threading.Event().wait()


if __name__ == "__main__":
    main()
