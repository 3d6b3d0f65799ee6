"""Where users and passwords for registries come from."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path

import msgspec
from zope.interface import implementer

from ctd.fetch.errors import MalformedDocument
from ctd.fetch.interfaces import ICredentials
from ctd.fetch.reference import DOCKER_HUB
from ctd.threads import IWorkers

#: The most bytes of a configuration file that are read.
FILE_LIMIT = 1 << 20

#: How Docker's configuration names Docker Hub.
_DOCKER_HUB_KEYS = frozenset({"index.docker.io", "registry-1.docker.io", DOCKER_HUB})


@implementer(ICredentials)
class StaticCredentials:
    """Credentials given when it is made; none by default.

    :param known: user and password by ``name[:port]``, as references write it.
    """

    def __init__(self, known: Mapping[str, tuple[str, str]] | None = None) -> None:
        self._known = dict(known or {})

    async def lookup(self, host: str) -> tuple[str, str] | None:
        """See :class:`ctd.fetch.interfaces.ICredentials`."""
        return self._known.get(host)


class _Entry(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""


class _File(msgspec.Struct):
    auths: dict[str, _Entry | None] = {}


@implementer(ICredentials)
class DockerCredentials:
    """The ``auths`` of a Docker configuration file, ``~/.docker/config.json``.

    The file is read each time, so that a login counts at once.  Credential
    helpers (``credsStore``, ``credHelpers``) and identity tokens are not used.

    :param path: need not be there.
    """

    def __init__(self, workers: IWorkers, path: Path) -> None:
        self._workers = workers
        self._path = path

    async def lookup(self, host: str) -> tuple[str, str] | None:
        """See :class:`ctd.fetch.interfaces.ICredentials`.

        :raise MalformedDocument: the file is there and cannot be used.
        """
        return (await self._workers.run(self._read)).get(host)

    def _read(self) -> dict[str, tuple[str, str]]:
        try:
            with self._path.open("rb") as file:
                body = file.read(FILE_LIMIT + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise MalformedDocument(str(self._path), error.strerror or "not readable") from None
        if len(body) > FILE_LIMIT:
            raise MalformedDocument(str(self._path), f"it has more than {FILE_LIMIT} bytes")
        try:
            auths = msgspec.json.decode(body, type=_File).auths
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            # The error itself might quote what is secret.
            reason = 'it is not JSON like {"auths": {"HOST": {"auth": "..."}}}'
            raise MalformedDocument(str(self._path), reason) from None
        known: dict[str, tuple[str, str]] = {}
        for key, entry in auths.items():
            pair = _pair(entry) if entry is not None else None
            if pair is not None:
                known.setdefault(_host(key), pair)
        return known


def _host(key: str) -> str:
    """``name[:port]`` of a key, which is that or a URL."""
    host = key.partition("://")[2] or key
    host = host.partition("/")[0].lower()
    return DOCKER_HUB if host in _DOCKER_HUB_KEYS else host


def _pair(entry: _Entry) -> tuple[str, str] | None:
    if entry.username and entry.password:
        return entry.username, entry.password
    try:
        user, colon, password = base64.b64decode(entry.auth).decode().partition(":")
    except (binascii.Error, UnicodeError):
        return None
    return (user, password.rstrip("\0")) if user and colon else None
