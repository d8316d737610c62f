"""What a child gives up before it runs a target: writing outside its own folder, the network, signals to others.

Linux only, and each as far as the kernel has it: Landlock (5.13; signals from 6.12 on), namespaces of network and
mounts. What it lacks is left out: then limits, the process hunt and the judge's distrust still hold. Reading stays
allowed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import tempfile
from collections.abc import Iterable

# linux/prctl.h, sched.h, mount.h and landlock.h; the system calls have these numbers on every architecture
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWNS = 0x10000000, 0x40000000, 0x00020000
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 1 << 1, 1 << 2, 1 << 14, 1 << 18
SHARED = "/dev/shm"  # where locks between processes lie
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1
_WRITE_FILE, _TRUNCATE = 1 << 1, 1 << 14
_CHANGES = _WRITE_FILE | sum(1 << bit for bit in range(4, 13))  # removing, and making each kind of file
_REFER = 1 << 13  # links and renames between folders
_TCP = 0b11  # bind, connect
_SCOPES = 0b11  # abstract sockets, signals

_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Have processes below this one that lose their parent become its own children."""
    with contextlib.suppress(AttributeError):
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def withdraw(folder: str, cache: str) -> None:
    """Leave this process nothing that no kernel needs; what it prints goes nowhere.

    Args:
        folder: an existing one that becomes its home, working and temporary directory.
        cache: Triton's cache; besides ``folder`` the only one where it may write.
    """
    os.makedirs(cache, exist_ok=True)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    adopt_orphans()
    os.environ["TRITON_CACHE_DIR"] = cache
    os.environ["HOME"] = os.environ["TMPDIR"] = tempfile.tempdir = folder
    os.chdir(folder)
    private = [SHARED] if _unshare() and _empty_shared() else []
    _write_only([folder, os.devnull, cache, *private])


def _unshare() -> bool:
    """A network namespace of its own, which has no interface that is up; whether it has its own mounts, too."""
    user, group = os.getuid(), os.getgid()
    with contextlib.suppress(OSError, AttributeError):
        for mounts in (CLONE_NEWNS, 0):
            if _libc.unshare(CLONE_NEWNET | mounts) == 0:
                return bool(mounts)
            if _libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | mounts) == 0:
                ids = (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1"))
                for name, text in ids:
                    with open(f"/proc/self/{name}", "w") as file:
                        file.write(text)
                return bool(mounts)
    return False


def _empty_shared() -> bool:
    """In its own mounts, a shared folder that nobody shares and that goes with it; whether there is one."""
    if _libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        return False
    return bool(_libc.mount(b"tmpfs", SHARED.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, b"size=64m,mode=1777") == 0)


def landlock_version() -> int:
    """Which version of Landlock the kernel has; 0 if none."""
    return max(int(_libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)), 0)


def _write_only(paths: Iterable[str]) -> None:
    """Forbid this process and all that come of it to change any file or folder but these and what is in them."""
    version = landlock_version()
    if not version:
        return
    files = _CHANGES | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    handled = struct.pack("<QQQ", files, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _libc.syscall(CREATE_RULESET, handled, ctypes.c_size_t(size), 0)
    if rules < 0:
        return
    for path in paths:
        with contextlib.suppress(OSError):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = files if os.path.isdir(path) else files & (_WRITE_FILE | _TRUNCATE)
            _libc.syscall(ADD_RULE, rules, _PATH_BENEATH, struct.pack("<Qi", allowed, place), 0)
            os.close(place)
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc.syscall(RESTRICT_SELF, rules, 0)
    os.close(rules)
