"""Attempts to get out of a sandbox, as data: each is a program that prints ESCAPED when it has got something.

Shared by test_sandbox.py (bubblewrap, on this machine) and by the role's Molecule scenario (systemd, in a guest), which
load it as a file: standard library only, nothing of the bridge. TARGETS is what they try to reach; it runs outside.
"""

from __future__ import annotations

from dataclasses import dataclass

OUTSIDE = "/tmp/local-llm-escapes"
"""Folder outside, open to all: `secret`, `socket`, and `contacts`, to which TARGETS adds a line when it is reached."""
SECRET = "the-secret-outside"
"""In the file, in the environment of TARGETS, and in the bridge's own as ESCAPES_SECRET."""
PORT = 47113
ABSTRACT = "local-llm-escapes"
LEFT_BEHIND = "local-llm-escapes-left-behind"
"""A word on the command line of processes that attempts leave behind."""

TARGETS = f'''
"""Listens where attempts may come, and says so in a file."""
import os, selectors, socket
os.umask(0)
os.makedirs("{OUTSIDE}", exist_ok=True)
open("{OUTSIDE}/secret", "w").write("{SECRET}")
contacts = open("{OUTSIDE}/contacts", "w", buffering=1)
selector = selectors.DefaultSelector()
for name, family, kind, address in (
    ("tcp", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", {PORT})),
    ("udp", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", {PORT})),
    ("abstract", socket.AF_UNIX, socket.SOCK_STREAM, "\\0{ABSTRACT}"),
    ("path", socket.AF_UNIX, socket.SOCK_STREAM, "{OUTSIDE}/socket"),
):
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if name == "path" and os.path.exists(address):
        os.unlink(address)
    listener.bind(address)
    if kind == socket.SOCK_STREAM:
        listener.listen()
    selector.register(listener, selectors.EVENT_READ, name)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        contacts.write(key.data + "\\n")
        key.fileobj.recv(99) if key.data == "udp" else key.fileobj.accept()[0].close()
'''
"""A program; run it outside with ESCAPES_SECRET in its environment. It prints `ready`."""

_PRELUDE = f"""\
import ctypes, os, platform, signal, socket, stat, struct, subprocess, sys, tempfile, time
OUTSIDE, SECRET, PORT = {OUTSIDE!r}, {SECRET!r}, {PORT}
libc = ctypes.CDLL(None, use_errno=True)
def escaped(what):
    print("ESCAPED:", what, flush=True)
def tried(function, *arguments):
    try:
        return function(*arguments)
    except (OSError, ValueError, AttributeError) as error:
        print(function, arguments, error)
def read(path):
    with open(path, "rb") as file:
        return file.read(4096)
def call(x86_64, aarch64, *arguments):
    return libc.syscall(x86_64 if platform.machine() == "x86_64" else aarch64, *arguments)
"""
_PRELUDE += """\
def in_processes(count, take, most):
    # Take memory in several processes at once, each of which keeps it; say so when it is more MiB than that.
    out, into = os.pipe()
    children = []
    for _ in range(count):
        children.append(os.fork())
        if children[-1] == 0:
            try:
                for mib in take():
                    os.write(into, struct.pack("d", mib))
            except (OSError, MemoryError):
                pass
            os.close(into)
            time.sleep(60)
    os.close(into)
    kept = 0
    while (data := os.read(out, 8)) and kept <= most:
        kept += struct.unpack("d", data)[0]
    (escaped if kept > most else print)(f"{kept:.0f} MiB")
    time.sleep(1)
    for child in children:
        os.kill(child, signal.SIGKILL)
"""


@dataclass(frozen=True)
class Attempt:
    """One attempt.

    Args:
        name: what it goes for.
        code: a program, before which comes a prelude.
        limits: names of limits, one of which has to end the code; None, or empty: it ends by itself.
        then: a program for the next sandbox, which prints ESCAPED if it finds something.
        real: whether it succeeds without a sandbox for an ordinary user, and is harmless there: this is tried, too.
        counted: whether it takes memory that it would get with a higher limit: this is tried, too.
        needs_cgroup: whether on a server only MemoryMax= holds it.
        ends_sandbox: whether it may end its own sandbox, so that there is no result.
    """

    name: str
    code: str
    limits: tuple[str | None, ...] = ()
    then: str = ""
    real: bool = False
    counted: bool = False
    needs_cgroup: bool = False
    ends_sandbox: bool = False

    def program(self) -> str:
        """Return the whole program."""
        return _PRELUDE + self.code

    def next_program(self) -> str:
        """Return the program for the next sandbox, if there is one."""
        return _PRELUDE + self.then if self.then else ""


ATTEMPTS = [
    Attempt(
        "accounts and configuration",
        """
for path in ("/etc/shadow", "/etc/passwd", "/etc/hostname", "/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key"):
    if tried(read, path):
        escaped(path)
""",
        real=True,
    ),
    Attempt(
        "folders of people and services",
        """
for path in ("/root", "/home", "/var", "/srv", "/mnt", "/opt", "/boot", "/etc", "/sys", "/dev/mqueue", OUTSIDE):
    if tried(os.listdir, path):
        escaped(path)
for folder, _, names in os.walk("/run"):
    for name in set(names) - {"os-release"}:
        escaped(f"{folder}/{name}")
""",
        real=True,
    ),
    Attempt(
        "the bridge's credentials",
        """
for path in ("/etc/local-llm-bridge/config.yml", "/etc/local-llm-bridge/credentials/engine-key",
             "/run/credentials/local-llm-bridge.service/engine-key", OUTSIDE + "/secret"):
    if tried(read, path):
        escaped(path)
""",
        real=True,
    ),
    Attempt(
        "writing to the machine's files",
        """
for folder in ("/", "/usr", "/usr/bin", "/usr/lib", "/bin", "/etc", "/run", "/home", "/opt", "/dev", OUTSIDE):
    path = folder + "/escapes-was-here"
    if tried(open, path, "w"):
        escaped(path)
        os.unlink(path)
""",
        real=True,
    ),
    Attempt(
        "links and detours to files",
        """
starts = ("/proc/self/root", "/proc/1/root", "/proc/self/cwd/../..", f"/proc/{os.getppid()}/cwd/..", "/usr/bin/../..")
for number, start in enumerate(starts):
    link = f"/tmp/escapes-link-{number}"
    tried(os.symlink, start, link)
    for path in (f"{link}/etc/passwd", f"{start}/etc/passwd", f"{start}{OUTSIDE}/secret"):
        if tried(read, path):
            escaped(path)
    tried(os.unlink, link)
root = os.open("/", os.O_RDONLY)
for up in range(1, 6):
        if tried(lambda: os.open("../" * up + "etc/passwd", os.O_RDONLY, dir_fd=root)):
            escaped("above /")
""",
        real=True,
    ),
    Attempt(
        "a TCP connection out",
        """
for address in (("1.1.1.1", 53), ("8.8.8.8", 443), ("10.0.0.1", 80), ("169.254.169.254", 80)):
    if tried(socket.create_connection, address, 1):
        escaped(address)
""",
    ),
    Attempt(
        "the machine's loopback",
        """
for address in (("127.0.0.1", PORT), ("127.0.0.1", 22), ("127.0.0.1", 8000), ("127.0.0.1", 8080), ("::1", PORT)):
    if tried(socket.create_connection, address, 1):
        escaped(address)
""",
        real=True,
    ),
    Attempt(
        "UDP and names",
        """
def send(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        return one.sendto(b"hello", address)
for address in (("127.0.0.1", PORT), ("8.8.8.8", 53), ("255.255.255.255", 9)):
    if tried(send, address):
        escaped(address)
for name in ("example.com", "debian.org"):
    if tried(socket.getaddrinfo, name, 80):
        escaped(name)
""",
        real=True,
    ),
    Attempt(
        "Unix sockets outside",
        f"""
def connect(address):
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(1)
        one.connect(address)
        return True
for address in ("\\0{ABSTRACT}", OUTSIDE + "/socket", "/run/dbus/system_bus_socket", "/run/systemd/private",
                "/run/systemd/journal/stdout", "/run/local-llm-sandbox.sock", "/var/run/docker.sock"):
    if tried(connect, address):
        escaped(repr(address))
""",
        real=True,
    ),
    Attempt(
        "other kinds of sockets",
        """
for name in ("AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG", "AF_CAN", "AF_BLUETOOTH"):
    kind = socket.SOCK_SEQPACKET if name == "AF_ALG" else socket.SOCK_DGRAM
    if tried(socket.socket, getattr(socket, name, 99), kind):
        escaped(name)
for family in range(2, 46):
    if tried(socket.socket, family, socket.SOCK_RAW):
        escaped(f"a raw socket of family {family}")
""",
        real=True,
    ),
    Attempt(
        "ending all processes",
        """
for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP):
    tried(os.kill, -1, number)
""",
        ends_sandbox=True,
    ),
    Attempt(
        "seeing other processes",
        """
for pid in filter(str.isdecimal, os.listdir("/proc")):
    for name in ("environ", "cmdline", "maps", "mem"):
        content = tried(read, f"/proc/{pid}/{name}") or b""
        if b"local-llm-escapes" in content or SECRET.encode() in content or b"/lib/systemd" in content:
            escaped(f"/proc/{pid}/{name}")
""",
        real=True,
    ),
    Attempt(
        "/proc/1",
        """
for name in ("root/etc/passwd", "root/etc/shadow", "cwd/etc/passwd", "root" + OUTSIDE + "/secret"):
    if tried(read, "/proc/1/" + name):
        escaped(name)
if SECRET.encode() in (tried(read, "/proc/1/environ") or b""):
    escaped("environ")
""",
    ),
    Attempt(
        "tracing",
        """
parent = os.getppid()
if libc.ptrace(16, parent, 0, 0) == 0 or libc.ptrace(0x4206, parent, 0, 0) == 0:
    escaped("attached to the parent")
one = os.fork()
if one == 0:
    time.sleep(5)
    os._exit(0)
if libc.ptrace(16, one, 0, 0) == 0:
    escaped("attached to a child")
local = ctypes.create_string_buffer(8)
vector = (ctypes.c_ulong * 2)(ctypes.addressof(local), 8)
if libc.process_vm_readv(one, vector, 1, vector, 1, 0) > 0:
    escaped("read a child's memory")
os.kill(one, 9)
""",
        real=True,
    ),
    Attempt(
        "a fork bomb",
        """
most = 0
while True:
    try:
        os.fork()
    except OSError:
        pass
""",
        limits=("processes",),
    ),
    Attempt(
        "a bomb of threads",
        """
import threading
for _ in range(5000):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
escaped("5000 threads")
""",
        limits=("processes",),
    ),
    Attempt(
        "memory of one process",
        """
kept = [bytearray(1 << 20) for _ in range(100_000)]
escaped("100 GiB")
""",
        limits=("memory",),
    ),
    Attempt(
        "memory of several processes",
        """
for _ in range(8):
    if os.fork() == 0:
        x = b"x" * (150 << 20)
        time.sleep(60)
time.sleep(60)
""",
        limits=("memory",),
    ),
    Attempt(
        "memory that belongs to nobody",
        """
kept = 0
for number in range(100):
    fd = tried(os.memfd_create, f"m{number}")
    if fd is not None:
        kept += tried(os.write, fd, bytes(16 << 20)) or 0
    shared = call(29, 194, 0, ctypes.c_size_t(16 << 20), 0o1600)
    if shared >= 0:
        kept += 16 << 20
        call(31, 195, shared, 0, 0)
if kept > 512 << 20:
    escaped(f"{kept >> 20} MiB")
""",
    ),
    Attempt(
        "memory that processes share",
        """
import mmap
def take():
    kept = []
    for _ in range(50):
        kept.append(mmap.mmap(-1, 4 << 20))
        kept[-1][:] = bytes(4 << 20)
        yield 4
in_processes(6, take, 600)
""",
        limits=("memory",),
        counted=True,
    ),
    Attempt(
        "shared memory of which little is mapped",
        """
libc.mmap.restype = ctypes.c_void_p
for mib in (128, 4):
    for number in range(512 // mib):
        size = mib << 20
        address = libc.mmap(None, ctypes.c_size_t(size), 3, 0x21, -1, ctypes.c_long(0))
        if address in (None, ctypes.c_void_p(-1).value):
            break
        ctypes.memset(address, 1, size)
        libc.munmap(ctypes.c_void_p(address + 4096), ctypes.c_size_t(size - 4096))
    else:
        escaped("512 MiB")
        break
""",
        limits=("memory",),
        counted=True,
    ),
    Attempt(
        "shared memory of a device",
        """
import mmap
fd = os.open("/dev/zero", os.O_RDWR)
if tried(mmap.mmap, fd, 4 << 20):
    escaped("shared memory from /dev/zero")
""",
        real=True,
    ),
    Attempt(
        "memory of a process without its first thread",
        """
import threading
def take():
    kept = []
    def more():
        for _ in range(18):
            kept.append(b"x" * (8 << 20))
            os.write(1, b"8\\n")
        time.sleep(60)
    threading.Thread(target=more).start()
    call(60, 93, 0)
out, into = os.pipe()
for _ in range(6):
    if os.fork() == 0:
        os.dup2(into, 1)
        take()
mib = 0
for line in os.fdopen(out):
    mib += int(line)
    if mib > 700:
        escaped(f"{mib} MiB")
        break
""",
        limits=("memory",),
        counted=True,
    ),
    Attempt(
        "memory of a process that cannot be looked at",
        """
print(libc.prctl(4, 0, 0, 0, 0))
def take():
    kept = []
    for _ in range(18):
        kept.append(b"x" * (8 << 20))
        yield 8
in_processes(8, take, 600)
""",
        limits=("memory",),
        counted=True,
    ),
    Attempt(
        "tables of pages",
        """
libc.mmap.restype = ctypes.c_void_p
def take():
    for number in range(30_000):
        where = ctypes.c_void_p((number + 1) << 30)
        address = libc.mmap(where, ctypes.c_size_t(4096), 1, 0x100022, -1, ctypes.c_long(0))
        if address in (None, ctypes.c_void_p(-1).value):
            return
        ctypes.string_at(address, 1)
        if number % 128 == 127:
            yield 1
in_processes(6, take, 600)
""",
        limits=("memory",),
        counted=True,
    ),
    Attempt(
        "a great many mappings",
        """
libc.mmap.restype = ctypes.c_void_p
def take():
    address = libc.mmap(None, ctypes.c_size_t(200 << 20), 0, 0x22, -1, ctypes.c_long(0))
    for number in range(25_000):
        if libc.mprotect(ctypes.c_void_p(address + number * 8192), ctypes.c_size_t(4096), 1):
            return
        if number % 2048 == 2047:
            yield 1
in_processes(6, take, 60)
""",
        limits=("memory",),
        counted=True,
    ),
    Attempt(
        "socket pairs with full buffers",
        """
def take():
    kept = []
    while True:
        try:
            kept.append(socket.socketpair())
        except OSError:
            return
        for one in kept[-1]:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
            one.setblocking(False)
            size = 0
            try:
                while True:
                    size += one.send(bytes(1 << 20))
            except BlockingIOError:
                pass
            yield size / (1 << 20)
        time.sleep(0.05)  # what comes between two looks at the memory is not to be more than is asked for here
in_processes(15, take, 288)
""",
        limits=("memory",),
        counted=True,
    ),
    Attempt(
        "connections that nobody accepts",
        """
mib = 0
listeners = []
for number in range(8):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\\0full" + str(number))
    listener.listen(4096)
    listeners.append(listener)
    for _ in range(4096):
        one = socket.socket(socket.AF_UNIX)
        one.setblocking(False)
        if one.connect_ex("\\0full" + str(number)):
            break
        try:
            while True:
                mib += one.send(bytes(1 << 20)) / (1 << 20)
        except BlockingIOError:
            pass
        one.close()
        if mib > 512:
            escaped(f"{mib} MiB")
            sys.exit()
""",
        limits=("memory",),
        counted=True,
    ),
    Attempt(
        "pages that a pipe or a socket holds",
        """
import mmap
ours, theirs = socket.socketpair()
out, into = os.pipe()
with open("/tmp/escapes-pages", "wb+") as file:
    file.write(bytes(4096))
    file.flush()
    fd = file.fileno()
    if tried(os.sendfile, ours.fileno(), fd, 0, 1) or tried(os.splice, fd, into, 1, 0):
        escaped("pages of a file")
os.unlink("/tmp/escapes-pages")
page = ctypes.create_string_buffer(4096)
vector = (ctypes.c_ulong * 2)(ctypes.addressof(page), 1)
if call(278, 75, into, vector, 1, 0) > 0:
    escaped("pages of memory")
""",
        real=True,
    ),
    Attempt(
        "files that are empty",
        """
def take(folder):
    for number in range(60_000):
        os.close(os.open(f"{folder}/{number:0250}", os.O_CREAT | os.O_WRONLY))
        if number % 1024 == 1023:
            yield 1.5
in_processes(4, lambda: take(tempfile.mkdtemp(dir="/tmp")), 320)
""",
        limits=("memory", None),  # systemd's /tmp takes no more
    ),
    Attempt(
        "lists of who may use a file",
        """
entries = [(1, 7, -1), *[(2, 7, os.getuid())] * 8000, (4, 7, -1), (16, 7, -1), (32, 7, -1)]
acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
kept = 0
for number in range(64):
    os.mkdir(f"/tmp/escapes-acl-{number}")
    if tried(lambda: os.setxattr(f"/tmp/escapes-acl-{number}", "system.posix_acl_default", acl) or 1):
        kept += 1
    os.rmdir(f"/tmp/escapes-acl-{number}")
if kept:
    escaped(f"{kept} times 64 KiB")
""",
    ),
    Attempt(
        "locks on files",
        """
import fcntl
def take():
    kept = []
    for number in range(60):
        kept.append(open(f"/tmp/escapes-locks-{os.getpid()}-{number}", "w"))
        for place in range(2048):
            fcntl.lockf(kept[-1], fcntl.LOCK_EX, 1, 2 * place)
        yield 2048 / 4096
in_processes(12, take, 60)
""",
        limits=("memory",),
        needs_cgroup=True,
    ),
    Attempt(
        "timers",
        """
timer = ctypes.c_int()
for number in range(4096):
    if call(222, 107, 0, None, ctypes.byref(timer)):
        break
else:
    escaped("4096 timers")
""",
        real=True,
    ),
    Attempt(
        "memory of the kernel by single calls",
        """
if call(294, 26, 0) >= 0 or call(253, 26, 0) >= 0:
    escaped("inotify, whose queues are long")
if libc.prctl(78, 1, ctypes.c_ulong(1 << 16), 0, 0) == 0:
    escaped("a table of futexes")
if call(444, 444, (ctypes.c_uint64 * 1)(0x1fff), 8, 0) >= 0:
    escaped("landlock, whose rules nobody counts")
context = ctypes.c_ulong()
if call(206, 0, 64, ctypes.byref(context)) == 0:
    escaped("aio")
out, into = os.pipe()
import fcntl
if tried(fcntl.fcntl, into, 1031, 1 << 20) or fcntl.fcntl(into, 1032) > 65536:
    escaped("a pipe of 1 MiB")
""",
        real=True,
    ),
    Attempt(
        "terminals of its own",
        """
if tried(os.openpty) or tried(os.open, "/dev/ptmx", os.O_RDWR) is not None:
    escaped("a terminal")
""",
        real=True,
    ),
    Attempt(
        "the watcher's memory",
        """
for path in (f"/proc/{os.getppid()}/mem", "/proc/1/mem"):
    if tried(os.open, path, os.O_RDWR) is not None:
        escaped(path)
""",
    ),
    Attempt(
        "filling disks",
        """
written = 0
block = bytes(1 << 20)
for folder in ("/tmp", "/dev/shm", "/var/tmp", "/run", "/dev", "/", os.getcwd()):
    for number in range(64):
        try:
            with open(f"{folder}/fill-{number}", "wb") as file:
                for _ in range(16):
                    written += file.write(block)
        except OSError as error:
            print(folder, error)
            break
print(written >> 20, "MiB")
if written > 300 << 20:
    escaped("more than there should be room for")
""",
    ),
    Attempt(
        "endless work that ignores signals",
        """
for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
    tried(signal.signal, number, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
while True:
    pass
""",
        limits=("time",),
    ),
    Attempt(
        "endless output",
        """
while True:
    os.write(1 + (time.time_ns() & 1), b"x" * 65536)
""",
        limits=("output",),
    ),
    Attempt(
        "settings of the kernel",
        """
for path in ("/proc/sys/kernel/hostname", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches",
             "/proc/sysrq-trigger", "/proc/sys/kernel/ns_last_pid", "/proc/sys/net/ipv4/ip_forward",
             "/proc/kcore", "/proc/self/uid_map", "/proc/self/setgroups", "/sys/kernel/mm/transparent_hugepage/enabled",
             "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory.max", "/sys/power/state"):
    fd = tried(os.open, path, os.O_WRONLY)
    if fd is not None and tried(os.write, fd, b"1"):
        escaped(path)
tried(lambda: open("/proc/self/oom_score_adj", "w").write("-1000"))
if b"-1000" in read("/proc/self/oom_score_adj"):
    escaped("safe from the OOM killer")
""",
    ),
    Attempt(
        "more rights",
        """
for function in (os.setuid, os.setgid, os.seteuid):
    tried(function, 0)
tried(os.setgroups, [0])
if 0 in (os.getuid(), os.geteuid(), os.getgid(), os.getegid()):
    escaped("root")
for program in ("su", "sudo", "newgrp", "mount", "passwd", "pkexec", "chsh"):
    command = [program, "-c", "id"]
    done = tried(lambda: subprocess.run(command, capture_output=True, timeout=2, stdin=subprocess.DEVNULL))
    if done and b"uid=0" in done.stdout:
        escaped(program)
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
if int(status["CapEff"], 16) or int(status["CapPrm"], 16) or int(status["CapBnd"], 16):
    escaped("capabilities " + status["CapBnd"])
if int(status["NoNewPrivs"]) != 1 or int(status["Seccomp"]) != 2:
    escaped("a process that may gain rights")
open("/tmp/escapes-setuid", "w").close()
tried(os.chown, "/tmp/escapes-setuid", 0, 0)
if os.stat("/tmp/escapes-setuid").st_uid == 0:
    escaped("a file of root")
os.unlink("/tmp/escapes-setuid")
""",
        real=True,
    ),
    Attempt(
        "mounts and namespaces",
        """
for flag in (0x10000000, 0x00020000, 0x20000000, 0x40000000, 0x08000000, 0x04000000, 0x02000000, 0x80):
    if libc.unshare(flag) == 0:
        escaped(f"unshare {flag:#x}")
one = call(56, 220, 0x10000000 | 0x20000000 | signal.SIGCHLD, 0, 0, 0, 0)
if one == 0:
    os._exit(0)
if one > 0:
    escaped("clone into new namespaces")
arguments = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, signal.SIGCHLD)
one = call(435, 435, arguments, ctypes.sizeof(arguments))
if one == 0:
    os._exit(0)
if one > 0:
    escaped("clone3 into new namespaces")
for name in ("user", "mnt", "pid", "net"):
    fd = tried(os.open, f"/proc/{os.getppid()}/ns/{name}", os.O_RDONLY)
    if fd is not None and libc.setns(fd, 0) == 0:
        escaped("setns " + name)
if libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None) == 0 or libc.mount(None, b"/", None, 0x1020, None) == 0:
    escaped("mount")
if libc.umount2(b"/tmp", 2) == 0 or libc.umount2(b"/proc", 2) == 0:
    escaped("umount")
if libc.chroot(b"/tmp") == 0 or call(155, 41, b"/tmp", b"/tmp") == 0:
    escaped("chroot")
if call(428, 428, -100, b"/", 1) >= 0 or call(430, 430, b"tmpfs", 0) >= 0:
    escaped("the new calls for mounts")
""",
        real=True,
    ),
    Attempt(
        "interfaces of the kernel",
        """
attributes = ctypes.create_string_buffer(256)
struct.pack_into("IIII", attributes, 0, 2, 4, 4, 1)
if call(321, 280, 0, attributes, 128) >= 0:
    escaped("bpf")
if call(250, 219, 1, 0, 0, 0, 0) >= 0 or call(250, 219, 0, -4, 1, 0, 0) >= 0:
    escaped("keyctl")
if call(248, 217, b"user", b"escapes", b"x", 1, -3) >= 0:
    escaped("add_key")
struct.pack_into("IIQ", attributes, 0, 1, 128, 0)
if call(298, 241, attributes, 0, -1, -1, 0) >= 0:
    escaped("perf_event_open")
if call(425, 425, 8, ctypes.create_string_buffer(256)) >= 0:
    escaped("io_uring")
if call(323, 282, 0) >= 0 or call(323, 282, 1) >= 0:
    escaped("userfaultfd")
if call(103, 116, 3, ctypes.create_string_buffer(256), 256) > 0:
    escaped("the kernel's log")
if call(304, 265, -100, ctypes.create_string_buffer(64), 0) >= 0:
    escaped("open_by_handle_at")
""",
        real=True,
    ),
    Attempt(
        "devices",
        """
for name in ("mem", "kmsg", "port", "sda", "vda", "nvme0n1", "fuse", "kvm", "net/tun", "loop-control", "nvidia0",
             "dri/card0", "mapper/control", "vhost-net", "uinput", "cuse", "userfaultfd"):
    if tried(os.open, "/dev/" + name, os.O_RDONLY) is not None:
        escaped(name)
harmless = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)}  # null, zero, full, random, urandom, tty, ptmx
for folder, _, names in os.walk("/dev"):
    for path in (f"{folder}/{name}" for name in names):
        details = os.lstat(path)
        if stat.S_ISBLK(details.st_mode) or stat.S_ISCHR(details.st_mode):
            if (os.major(details.st_rdev), os.minor(details.st_rdev)) not in harmless:
                escaped(path)
for folder in ("/tmp", "/dev", "/dev/shm"):
    for device in (os.makedev(1, 1), os.makedev(254, 0), os.makedev(8, 0)):
        try:
            os.mknod(folder + "/escapes-node", 0o600 | 0o060000, device)
        except OSError as error:
            print(error)
        else:
            escaped("a block device")
""",
    ),
    Attempt(
        "the terminal",
        """
import fcntl, termios
for path in ("/dev/tty", "/dev/console", "/dev/tty1", "/proc/1/fd/0", "/proc/1/fd/2"):
    fd = tried(os.open, path, os.O_RDWR)
    if fd is not None and tried(fcntl.ioctl, fd, termios.TIOCSTI, b"x") is not None:
        escaped(path)
""",
    ),
    Attempt(
        "files for the next call",
        """
for folder in ("/tmp", "/dev/shm", "/var/tmp", "/run", "/dev/mqueue", OUTSIDE, os.getcwd()):
    if tried(lambda: open(folder + "/escapes-left", "w").write("x")):
        print("left", folder)
""",
        then="""
for folder in ("/tmp", "/dev/shm", "/var/tmp", "/run", "/dev/mqueue", OUTSIDE, os.getcwd()):
    if os.path.exists(folder + "/escapes-left"):
        escaped(folder)
        os.unlink(folder + "/escapes-left")
""",
        real=True,
    ),
    Attempt(
        "processes that outlive the call",
        f"""
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in set(signal.valid_signals()) - {{signal.SIGKILL, signal.SIGSTOP}}:
                tried(signal.signal, number, signal.SIG_IGN)
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(120)", "{LEFT_BEHIND}"])
        os._exit(0)
time.sleep(0.2)
print("left")
""",
        then=f"""
for pid in filter(str.isdecimal, os.listdir("/proc")):
    command = tried(read, f"/proc/{{pid}}/cmdline") or b""
    if b"{LEFT_BEHIND}" in command:
        escaped(pid)
        os.kill(int(pid), 9)
""",
        real=True,
    ),
    Attempt(
        "secrets in the environment",
        """
for name in ("self", str(os.getppid())):
    if SECRET.encode() in (tried(read, f"/proc/{name}/environ") or b""):
        escaped("environ of " + name)
for name in os.environ:
    if name not in ("HOME", "PATH", "LANG", "LC_CTYPE", "MALLOC_ARENA_MAX"):
        escaped(name)
""",
        real=True,
    ),
    Attempt(
        "open files of others",
        """
for fd in os.listdir("/proc/self/fd"):
    target = tried(os.readlink, f"/proc/self/fd/{fd}") or ""
    if int(fd) > 2 and target and "/proc/" not in target:
        escaped(f"{fd} is {target}")
for fd in range(8):
    other = call(434, 434, os.getppid(), 0)
    if other >= 0 and call(438, 438, other, fd, 0) >= 0:
        escaped("took the parent's file")
""",
    ),
    Attempt(
        "raising limits",
        """
import resource
for name in ("AS", "CPU", "NPROC", "FSIZE", "NOFILE", "MEMLOCK", "CORE"):
    kind = getattr(resource, "RLIMIT_" + name)
    soft, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY:
        escaped(f"no limit {name}")
    elif tried(lambda: resource.setrlimit(kind, (soft, hard + 1))) or resource.getrlimit(kind)[1] > hard:
        escaped("raised " + name)
tried(os.nice, -10)
tried(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))
if os.getpriority(os.PRIO_PROCESS, 0) < 0 or os.sched_getscheduler(0) == os.SCHED_FIFO:
    escaped("more of the processor")
""",
        real=True,
    ),
    Attempt(
        "stopping the watcher",
        """
os.kill(os.getppid(), signal.SIGSTOP)
time.sleep(0.5)
while True:
    pass
""",
        limits=("time",),
    ),
    Attempt(
        "changing the machine",
        """
if tried(lambda: socket.sethostname("escaped") or 1):
    escaped("the hostname")
if tried(lambda: time.clock_settime(time.CLOCK_REALTIME, 0) or 1):
    escaped("the clock")
if call(169, 142, 0xfee1dead, 672274793, 0, 0) == 0 or call(163, 89, 0) == 0:
    escaped("reboot or acct")
if call(175, 105, b"", 0, b"") == 0 or call(167, 224, b"/tmp/x", 0) == 0:
    escaped("modules or swap")
""",
    ),
]
