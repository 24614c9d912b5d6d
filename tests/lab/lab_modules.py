"""In a guest, as part of its Python: makes Ansible's modules cheap (build-image puts it there; docs/lab.md).

A module that comes through a pipe takes 350 ms of processor time before it does anything: Python starts, unpacks
`ansible.module_utils`, compiles and runs it. Here the guest's first module leaves a process behind that has done this,
and those that follow are copies of that process: with the environment, the folder and the streams of the process that
was to run them, and with the code that they bring. What is still imported from their zip is compiled once.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing takes long to import, and every Python of a guest comes by here
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any

FOLDER = "/run/lab-modules"
SOCKET = f"{FOLDER}/{sys.version_info[0]}.{sys.version_info[1]}"
BYTECODE = "/var/cache/lab-modules"
MARK = b"_ANSIBALLZ_WRAPPER = True"


def hand_over() -> None:
    """Have the module on stdin run by a copy, and end as it ended. Return where this process is to go on itself."""
    if not sys.orig_argv[0].startswith("/usr/bin/python3") or sys.orig_argv[1:] or os.getuid() != 0 or os.isatty(0):
        return
    if not _came_from_outside():
        return
    source = os.memfd_create("module")
    while data := os.read(0, 1 << 20):
        os.write(source, data)
    os.lseek(source, 0, os.SEEK_SET)
    os.dup2(source, 0)
    if MARK not in os.pread(source, 4096, 0):
        return
    import json
    import socket

    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(SOCKET)
    except OSError:
        if os.fork() == 0:
            os.setsid()
            command = [sys.executable, "-c", "import lab_modules; lab_modules.serve()"]
            os.execv(sys.executable, command)  # noqa: S606
        return
    mask = os.umask(0)
    os.umask(mask)
    process = {"environment": dict(os.environ), "folder": os.getcwd(), "mask": mask}  # noqa: PTH109
    socket.send_fds(connection, [json.dumps(process).encode()], [0, 1, 2])
    status = connection.recv(1)
    os._exit(status[0] if status else 1)


def _came_from_outside() -> bool:
    """Whether podman has put this process into the guest. What comes by ssh may look for that among its parents."""
    process = os.getppid()
    while process > 1:
        with open(f"/proc/{process}/stat", "rb") as file:  # noqa: PTH123
            process = int(file.read().rpartition(b")")[2].split()[1])
    return process == 0


def serve() -> None:
    """Load what the module on stdin brings, then run each that is handed over in a copy of this process."""
    import base64
    import fcntl
    import re
    import signal
    import socket

    null = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(null, stream)
    os.makedirs(FOLDER, mode=0o700, exist_ok=True)  # noqa: PTH103
    lock = os.open(f"{SOCKET}.lock", os.O_CREAT | os.O_WRONLY)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    found = re.search(rb"zip_data='([\w+/=]+)'", _read(0))
    assert found, "Ansible has other modules than this was made for"
    with open(f"{SOCKET}.zip", "wb") as file:  # noqa: PTH123
        file.write(base64.b64decode(found[1]))
    os.dup2(null, 0)
    sys.path.insert(0, file.name)
    from ansible.module_utils._internal._ansiballz import _loader

    sys.path.remove(file.name)
    run = _loader.run_module

    def run_module(*, modlib_path: str, **others: object) -> None:
        """Look for what is not loaded yet in the module's own zip."""
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == "ansible" and hasattr(module, "__path__"):
                module.__path__.insert(0, f"{modlib_path}/{name.replace('.', '/')}")
        run(modlib_path=modlib_path, **others)

    _loader.run_module = run_module
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.path.exists(SOCKET):  # noqa: PTH110
        os.unlink(SOCKET)  # noqa: PTH108
    listener.bind(SOCKET)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            os.close(lock)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _run(connection)
        connection.close()


def _run(connection: object) -> None:
    """Be the process that the module was for, and end."""
    import atexit
    import json
    import socket
    import traceback
    import types

    assert isinstance(connection, socket.socket)
    text, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    process = json.loads(text)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(process["environment"])
    os.umask(process["mask"])
    os.chdir(process["folder"])
    sys.argv = [""]
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    status = 0
    try:
        exec(compile(_read(0), "<stdin>", "exec"), main.__dict__)  # noqa: S102 - as Python does with its stdin
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send(bytes([status & 255]))
    os._exit(status & 255)


def _read(descriptor: int) -> bytes:
    """Return all of a file. Whoever shares it reads it, too, so its position stays."""
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def keep_bytecode() -> None:
    """Have Python compile a source in a zip once. It has no public way to do that."""
    import _imp
    import marshal

    zipimport: Any = __import__("zipimport")
    compile_source = zipimport._compile_source

    def cached(path: str, source: bytes) -> CodeType:
        name = f"{BYTECODE}/{sys.version_info[1]}-{_imp.source_hash(0, source).hex()}"
        try:
            with open(name, "rb") as kept:  # noqa: PTH123
                code: CodeType = marshal.load(kept)  # noqa: S302 - root's own
                return code
        except (OSError, EOFError, ValueError, TypeError):
            code = compile_source(path, source)
        try:
            with open(f"{name}.{os.getpid()}", "wb") as file:  # noqa: PTH123
                marshal.dump(code, file)
            os.rename(file.name, name)  # noqa: PTH104
        except OSError:
            pass  # an account that may not write there
        return code

    zipimport._compile_source = cached


keep_bytecode()
hand_over()
