"""Users and groups as a root file system's own files name them (passwd(5), group(5))."""

from __future__ import annotations

from collections.abc import Iterator

from ctd.errors import InvalidArgument
from ctd.model import User

_LARGEST_ID = (1 << 32) - 2
#: NGROUPS_MAX of Linux (getgroups(2)).
_MOST_GROUPS = 1 << 16


def lookup(user: str, passwd: bytes, group: bytes) -> User:
    """The numbers *user* (``user[:group]``, names or numbers) stands for.

    A number needs no entry.  A user given without a group has that of its
    entry, and is in the further groups that list it; with a group, in that one
    alone.  Lines that cannot be read are passed over.

    :raise InvalidArgument: a name has no entry, or a number is out of range.
    """
    name, colon, group_name = user.partition(":")
    if colon and not group_name:
        raise InvalidArgument("user", f"{user!r} has no group after the colon")
    entry = next((e for e in _entries(passwd, 6) if e[0] == name), None)
    if entry is None and name.isdecimal():
        entry = next((e for e in _entries(passwd, 6) if e[2] == name), None)
    if entry is not None:
        uid, gid, home = _number(user, entry[2]), _number(user, entry[3]), entry[5] or "/"
    elif name.isdecimal():
        uid, gid, home = _number(user, name), 0, "/"
    elif not name:
        uid, gid, home = 0, 0, "/root"
    else:
        raise InvalidArgument("user", f"there is no user {name!r} in the image's /etc/passwd")
    if group_name:
        return User(uid, _group(user, group_name, group), (), home)
    more = (
        _number(user, e[2])
        for e in _entries(group, 4)
        if entry is not None and entry[0] in e[3].split(",") and e[2].isdecimal()
    )
    groups = tuple(dict.fromkeys(g for g in more if g != gid))
    if len(groups) > _MOST_GROUPS:
        raise InvalidArgument("user", f"{user!r} is in over {_MOST_GROUPS} groups of the image")
    return User(uid, gid, groups, home)


def _group(user: str, name: str, group: bytes) -> int:
    for entry in _entries(group, 4):
        if entry[0] == name and entry[2].isdecimal():
            return _number(user, entry[2])
    if name.isdecimal():
        return _number(user, name)
    raise InvalidArgument("user", f"there is no group {name!r} in the image's /etc/group")


def _number(user: str, text: str) -> int:
    if not text.isdecimal() or int(text) > _LARGEST_ID:
        raise InvalidArgument("user", f"{user!r}: {text!r} is no user or group id")
    return int(text)


def _entries(file: bytes, fields: int) -> Iterator[list[str]]:
    for line in file.decode("utf-8", "surrogateescape").splitlines():
        words = line.strip().split(":")
        if len(words) >= fields and words[0] and not words[0].startswith("#"):
            yield words
