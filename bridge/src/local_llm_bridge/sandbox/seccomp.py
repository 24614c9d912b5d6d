"""The system calls that code in a sandbox may not use, as programs for the kernel's seccomp filter.

Namespaces keep the code from seeing anything; these keep it from the parts of the kernel in which ways out of
namespaces are usually found, from what namespaces do not cover, such as the developer's keyrings, and from memory that
the runner could not count. bubblewrap gets `program()`, for which systemd has a setting of its own; `arguments()` is
what no setting of systemd can say, and the runner gives it to the code in both. The runner has this file beside it.
"""

from __future__ import annotations

import errno
import os
import struct

# Number of each call on x86_64 and on aarch64; None: not there.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # keyrings
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # large parts of the kernel that Python code does not need
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "modify_ldt": (154, None),
    "personality": (135, 92),
    "lookup_dcookie": (212, 18),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "remap_file_pages": (216, 234),
    # memory that no limit counts: its own, its queues and rules, or pages that it keeps from being freed
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "io_setup": (206, 0),
    "landlock_create_ruleset": (444, 444),
    "sendfile": (40, 71),
    "splice": (275, 76),
    "tee": (276, 77),
    "vmsplice": (278, 75),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    # the machine
    "syslog": (103, 116),
    "acct": (163, 89),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "iopl": (172, None),
    "ioperm": (173, None),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "vhangup": (153, 58),
}
# AUDIT_ARCH_*, and the numbers of clone, clone3, socket and socketpair, then mmap, prctl, fcntl and setsockopt.
_MACHINES = {
    "x86_64": (0, 0xC000003E, 56, 435, (41, 53), (9, 157, 72, 54)),
    "aarch64": (1, 0xC00000B7, 220, 435, (198, 199), (222, 167, 25, 208)),
}
MACHINES = tuple(_MACHINES)
"""Machines for which there is a program, as platform.machine() calls them."""
_CLONE_NEW = 0x7E020000  # all of CLONE_NEW* that clone knows
_X32 = 0x40000000
_AF_UNIX = 1
_MAP_SHARED, _MAP_ANONYMOUS, _MAP_HUGETLB = 0x01, 0x20, 0x40000
# PR_SET_PDEATHSIG, PR_GET_*, PR_SET_NAME, PR_SET_TIMERSLACK, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS. Others hide a
# process from its watcher (PR_SET_DUMPABLE) or have the kernel take memory (PR_FUTEX_HASH).
_PRCTL = (1, 2, 3, 15, 16, 21, 23, 29, 30, 36, 37, 38, 39)
_F_SETPIPE_SZ = 1031
_SOL_SOCKET, _SO_SNDBUF, _SO_ATTACH = 1, 7, (26, 50, 51, 52)

# Instructions of classic BPF, and places in struct seccomp_data.
_LOAD, _IF_EQUAL, _IF_ABOVE, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, (16, 24, 32, 40)
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000

_Step = tuple[int, int, int, int]


def program(machine: str | None = None) -> bytes:
    """Return the filter.

    Args:
        machine: one of MACHINES; None: this one.

    Raises:
        KeyError: there is none for the machine.
    """
    column, architecture, clone, clone3, sockets, _ = _MACHINES[machine or os.uname().machine]
    refused = sorted(number for row in _REFUSED.values() if (number := row[column]) is not None)
    steps = [
        *_start(architecture),
        # Its flags are out of sight here; without it, the C library uses clone.
        (_IF_EQUAL, 0, 1, clone3),
        (_RETURN, 0, 0, _ERROR | errno.ENOSYS),
        *_of_call(clone, [(_LOAD, 0, 0, _ARGUMENTS[0]), (_IF_ANY_BIT, 0, 1, _CLONE_NEW), _fail(errno.EPERM)]),
    ]
    for number in sockets:
        only_unix = [(_LOAD, 0, 0, _ARGUMENTS[0]), (_IF_EQUAL, 1, 0, _AF_UNIX), _fail(errno.EAFNOSUPPORT)]
        steps += _of_call(number, only_unix)
    for number in refused:
        steps += [(_IF_EQUAL, 0, 1, number), _fail(errno.EPERM)]
    return _packed(steps)


def arguments(most_shared: int, machine: str | None = None) -> bytes:
    """Return the filter of what calls may be given.

    Args:
        most_shared: the largest mapping of shared memory without a file, in bytes. Its memory stays whole until the
            last page of it is unmapped, so nothing else tells how much there is behind what is mapped.
        machine: one of MACHINES; None: this one.

    Raises:
        KeyError: there is none for the machine.
    """
    _, architecture, _, _, _, (mmap, prctl, fcntl, setsockopt) = _MACHINES[machine or os.uname().machine]
    steps = [
        *_start(architecture),
        *_of_call(
            mmap,
            [
                (_LOAD, 0, 0, _ARGUMENTS[3]),
                (_IF_ANY_BIT, 0, 1, _MAP_HUGETLB),
                _fail(errno.EPERM),
                (_IF_ANY_BIT, 0, 6, _MAP_ANONYMOUS),
                (_IF_ANY_BIT, 0, 5, _MAP_SHARED),
                (_LOAD, 0, 0, _ARGUMENTS[1] + 4),
                (_IF_EQUAL, 0, 2, 0),
                (_LOAD, 0, 0, _ARGUMENTS[1]),
                (_IF_ABOVE, 0, 1, most_shared),
                _fail(errno.ENOMEM),
            ],
        ),
        *_of_call(
            prctl,
            [
                (_LOAD, 0, 0, _ARGUMENTS[0]),
                *((_IF_EQUAL, len(_PRCTL) - place, 0, option) for place, option in enumerate(_PRCTL)),
                _fail(errno.EINVAL),
            ],
        ),
        *_of_call(fcntl, [(_LOAD, 0, 0, _ARGUMENTS[1]), (_IF_EQUAL, 0, 1, _F_SETPIPE_SZ), _fail(errno.EPERM)]),
        *_of_call(
            setsockopt,
            [
                (_LOAD, 0, 0, _ARGUMENTS[1]),
                (_IF_EQUAL, 0, 2 * len(_SO_ATTACH) + 3, _SOL_SOCKET),
                (_LOAD, 0, 0, _ARGUMENTS[2]),
                # Programs that ask for a buffer do with any: it stays as it is.
                (_IF_EQUAL, 0, 1, _SO_SNDBUF),
                _fail(0),
                *(step for option in _SO_ATTACH for step in ((_IF_EQUAL, 0, 1, option), _fail(errno.EPERM))),
            ],
        ),
    ]
    return _packed(steps)


def _start(architecture: int) -> list[_Step]:
    """Return the steps that leave only calls of this machine's own kind, and their number at hand."""
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_IF_AT_LEAST, 0, 1, _X32),
        _fail(errno.ENOSYS),
    ]


def _of_call(number: int, steps: list[_Step]) -> list[_Step]:
    """Return steps for one call, which is allowed if they do not end it."""
    return [(_IF_EQUAL, 0, len(steps) + 1, number), *steps, (_RETURN, 0, 0, _ALLOW)]


def _fail(error: int) -> _Step:
    return (_RETURN, 0, 0, _ERROR | error)


def _packed(steps: list[_Step]) -> bytes:
    return b"".join(struct.pack("<HBBI", *step) for step in [*steps, (_RETURN, 0, 0, _ALLOW)])
