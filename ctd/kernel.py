"""System calls that Python 3.11 has no function for, by ctypes; standard library only.

Every function raises :class:`OSError` with the call's errno.  Numbers are those
of x86-64 and arm64, which agree for all calls made by number here (they were
added after 2011).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterable

_libc = ctypes.CDLL(None, use_errno=True)

# mount(2)
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_NOATIME = 1024
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

# unshare(2)
CLONE_NEWNS = 0x00020000

# prctl(2)
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36

# openat2(2)
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# the new mount API
OPEN_TREE_CLONE = 1
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_RDONLY = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6

# sync_file_range(2)
SYNC_FILE_RANGE_WRITE = 2

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_OPENAT2 = 437

AT_FDCWD = -100

# Compiled once, here: compiling is memory to each shim that does it.
_LAYER = re.compile(r"(?:[^:\\]|\\.)+", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)

_MOUNT_FLAGS = {
    "ro": MS_RDONLY,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
    "noatime": MS_NOATIME,
    "bind": MS_BIND,
    "rbind": MS_BIND | MS_REC,
    "remount": MS_REMOUNT,
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | MS_REC,
}


def _check(result: int, path: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def _bytes(text: str | bytes | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def _syscall(number: int, *args: object) -> int:
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return _check(_libc.syscall(ctypes.c_long(number), *longs))


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str = "") -> None:
    """mount(2)."""
    _check(
        _libc.mount(
            _bytes(source), _bytes(target), _bytes(fstype), ctypes.c_ulong(flags), _bytes(data)
        ),
        target,
    )


def mount_options(options: Iterable[str]) -> tuple[int, str]:
    """Split options as mount(8) has them into mount(2)'s flags and data."""
    flags, data = 0, []
    for option in options:
        if option in _MOUNT_FLAGS:
            flags |= _MOUNT_FLAGS[option]
        elif option not in ("rw", "suid", "dev", "exec", "defaults"):
            data.append(option)
    return flags, ",".join(data)


def split_layers(lowerdir: str) -> list[str]:
    """The value of overlayfs's ``lowerdir`` at its colons, not at escaped ones; still escaped."""
    return _LAYER.findall(lowerdir)


def unescaped(text: str) -> str:
    """A path of an overlay's option as it was before ``:``, ``,`` and ``\\`` were escaped."""
    return _ESCAPED.sub(r"\1", text)


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(_bytes(target), flags), target)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags))


def setns(fd: int, nstype: int = 0) -> None:
    """setns(2)."""
    _check(_libc.setns(fd, nstype))


def prctl(option: int, argument: int | bytes = 0) -> None:
    """prctl(2) with one argument."""
    value = ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_ulong(argument)
    _check(_libc.prctl(option, value, 0, 0, 0))


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def openat2(dirfd: int, path: str | bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2): open *path* below *dirfd*, bound by *resolve*; always close-on-exec."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    name = ctypes.c_char_p(os.fsencode(path))
    return _syscall(_SYS_OPENAT2, dirfd, name, ctypes.byref(how), ctypes.sizeof(how))


def detached(fstype: str, options: Iterable[str], attributes: int = 0) -> int:
    """A mount that is attached nowhere, as a directory descriptor.

    It is gone when the descriptor is closed, so it cannot leak.  *options* are
    ``name=value`` or flags of the file system.
    """
    context = _syscall(_SYS_FSOPEN, ctypes.c_char_p(fstype.encode()), FSOPEN_CLOEXEC)
    try:
        for option in options:
            name, has_value, value = option.partition("=")
            if has_value:
                kind, argument = _FSCONFIG_SET_STRING, ctypes.c_char_p(os.fsencode(value))
            else:
                kind, argument = _FSCONFIG_SET_FLAG, ctypes.c_char_p(None)
            _syscall(_SYS_FSCONFIG, context, kind, ctypes.c_char_p(name.encode()), argument, 0)
        none = ctypes.c_char_p(None)
        _syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, none, none, 0)
        return _syscall(_SYS_FSMOUNT, context, FSMOUNT_CLOEXEC, attributes)
    finally:
        os.close(context)


def attach(mount_fd: int, target: str) -> None:
    """Attach a detached mount at *target* (move_mount(2))."""
    empty = ctypes.c_char_p(b"")
    where = ctypes.c_char_p(os.fsencode(target))
    _syscall(_SYS_MOVE_MOUNT, mount_fd, empty, AT_FDCWD, where, MOVE_MOUNT_F_EMPTY_PATH)


def syncfs(fd: int) -> None:
    """syncfs(2): put everything written to *fd*'s file system on disk."""
    _check(_libc.syncfs(fd))


def sync_file_range(fd: int, offset: int, length: int, flags: int = SYNC_FILE_RANGE_WRITE) -> None:
    """sync_file_range(2): begin to write a part of a file back."""
    _check(
        _libc.sync_file_range(
            fd, ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(flags)
        )
    )


def start_time(pid: int) -> int | None:
    """When *pid* started, in clock ticks since boot, or None if there is no such process.

    Field 22 of ``/proc/PID/stat`` (proc(5)).
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 (no pathlib in the shim)
            return int(file.read().rpartition(b") ")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return None


def open_process(pid: int, start_time_: int) -> int:
    """A pidfd of the process that is named by *pid* and the time it started.

    :raise ProcessLookupError: there is no such process: none of that pid, another
        one by now, or a thread (for which pidfd_open(2) has errors of its own).
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.ENOENT, errno.EINVAL):
            raise ProcessLookupError(errno.ESRCH, f"there is no process {pid}") from None
        raise
    try:
        if start_time(pid) != start_time_:
            raise ProcessLookupError(errno.ESRCH, f"process {pid} is another one by now")
    except BaseException:
        os.close(pidfd)
        raise
    return pidfd
