"""Linux capabilities (capabilities(7)): their names, those a container gets, adding and removing.

Pure.  Names are as in OCI configurations: ``CAP_NET_ADMIN``.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from ctd.errors import InvalidArgument

#: Every capability, by its number in the kernel.
ALL = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)

#: What a container's processes get if nothing else is asked for: containerd's and Docker's set.
DEFAULT = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)

_EVERYTHING = "CAP_ALL"


def of_mask(mask: int) -> tuple[str, ...]:
    """The names in a set as the kernel shows it: ``CapPrm`` of ``/proc/PID/status``."""
    return tuple(name for number, name in enumerate(ALL) if mask >> number & 1)


def parse(words: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
    """What to add and what to take away, from ``NET_ADMIN``, ``+NET_ADMIN``, ``-KILL``, ``ALL``.

    ``CAP_`` may be in front or not, in upper or lower case.

    :return: names; all of them stand for ``ALL``.
    :raise InvalidArgument: there is no such capability, or it is in both.
    """
    add: set[str] = set()
    remove: set[str] = set()
    for number, word in enumerate(words):
        field = f"capabilities[{number}]"
        name = _name(field, word[1:] if word[:1] in ("+", "-") else word)
        mine, other = (remove, add) if word.startswith("-") else (add, remove)
        if name in other:
            raise InvalidArgument(field, f"{name} is both added and taken away; leave one out")
        mine.add(name)
    return frozenset(add), frozenset(remove)


def tweak(
    base: Iterable[str], words: Iterable[str], available: Collection[str] = ALL
) -> tuple[str, ...]:
    """*base* with what *words* add, and without what they take away; their order is nothing.

    ``ALL`` is all that are *available*, less what is taken away by name;
    ``-ALL`` leaves only what is added by name.

    :param available: what the daemon has itself, and so can give.
    :return: by number in the kernel.
    :raise InvalidArgument: a word cannot be used, or what it adds is not available.
    """
    words = tuple(words)
    add, remove = parse(words)
    if _EVERYTHING in add:
        found = set(available) - remove
    elif _EVERYTHING in remove:
        found = set(add)
    else:
        found = (set(base) & set(available) - remove) | add
    for number, word in enumerate(words):
        name = _name("capabilities", word.lstrip("+-"))
        if name in add and name != _EVERYTHING and name not in available:
            raise InvalidArgument(
                f"capabilities[{number}]", f"{name} cannot be given: the daemon has not got it"
            )
    return tuple(name for name in ALL if name in found)


def _name(field: str, word: str) -> str:
    name = word.upper()
    if not name.startswith("CAP_"):
        name = f"CAP_{name}"
    if name in ALL or name == _EVERYTHING:
        return name
    near = difflib.get_close_matches(name[:40], ALL, 1, 0.5)
    hint = f"; did you mean {near[0].removeprefix('CAP_')}?" if near else "; see capabilities(7)"
    raise InvalidArgument(field, f"there is no capability {word[:40]!r}{hint}")
