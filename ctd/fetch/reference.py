"""Image references: what people write, checked, and what it is short for.

The grammar is that of distribution's reference package (distribution,
``reference/reference.go``); the defaults are Docker's (``reference/normalize.go``):
no registry means Docker Hub, one word on Docker Hub is below ``library/``, and
neither tag nor digest means ``latest``.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NoReturn

import attrs

from ctd.errors import InvalidArgument
from ctd.model import Digest

DOCKER_HUB = "docker.io"
_DOCKER_HUB_API = "registry-1.docker.io"
_DOCKER_HUB_OLD = "index.docker.io"

#: The most characters of a repository's name, and of a tag.
REPOSITORY_LIMIT = 255
TAG_LIMIT = 128
#: More than the longest reference; what is longer is not looked at.
_TEXT_LIMIT = 1024

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_DOMAIN = re.compile(
    rf"(?P<host>{_LABEL}(?:\.{_LABEL})*|\[(?P<ipv6>[0-9a-fA-F:]+)\])(?::(?P<port>[0-9]{{1,5}}))?"
)
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{TAG_LIMIT - 1}}}")


@attrs.frozen
class Reference:
    """An image in a registry, by its full name.

    :ivar domain: the registry as it is written in names: ``name[:port]``, lower case.
    :ivar repository: the path below it.
    :ivar tag: None only beside a digest.
    :ivar digest: what the bytes must hash to, or None.
    """

    domain: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str, field: str = "ref") -> Reference:
        """Read ``[domain/]repository[:tag][@digest]``.

        :param field: the parameter that an error names.
        :raise InvalidArgument: *text* is no reference.
        """

        def refuse(reason: str) -> NoReturn:
            raise InvalidArgument(field, f"{text[:200]!r}: {reason}")

        if not text or len(text) > _TEXT_LIMIT:
            refuse("a reference is [registry/]repository[:tag][@digest], like alpine:3.20")
        if "://" in text:
            refuse("leave out the scheme: a reference begins with the registry or the repository")
        named, at, hexed = text.partition("@")
        digest = Digest.parse(hexed, field) if at else None
        name, tag = _tagged(named)
        if tag is None and digest is None:
            tag = "latest"
        if tag is not None and not _TAG.fullmatch(tag):
            refuse(f"a tag is 1 to {TAG_LIMIT} of A-Z a-z 0-9 _ . - and begins with none of . -")
        domain, repository = _split(name)
        problem = _domain_problem(domain) or _repository_problem(repository)
        if problem:
            refuse(problem)
        if domain == DOCKER_HUB and re.fullmatch(r"library/[0-9a-f]{64}", repository):
            refuse("a repository cannot be named like an image ID; write sha256:<64 hex digits>")
        return cls(domain, repository, tag, digest)

    @property
    def name(self) -> str:
        """The repository with its registry: ``docker.io/library/alpine``."""
        return f"{self.domain}/{self.repository}"

    @property
    def host(self) -> str:
        """Where the registry's API is: ``name[:port]``."""
        return _DOCKER_HUB_API if self.domain == DOCKER_HUB else self.domain

    @property
    def target(self) -> str:
        """What a registry is asked for: the digest if there is one, else the tag."""
        return str(self.digest) if self.digest is not None else self.tag or "latest"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        return f"{self.name}{tag}" + (f"@{self.digest}" if self.digest is not None else "")


def is_tag(text: str) -> bool:
    """Whether *text* can be a tag."""
    return _TAG.fullmatch(text) is not None


def is_loopback(domain: str) -> bool:
    """Whether ``name[:port]`` is this machine by its very name: nothing is looked up."""
    matched = _DOMAIN.fullmatch(domain)
    if matched is None:
        return False
    host = matched["ipv6"] or matched["host"]
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _tagged(named: str) -> tuple[str, str | None]:
    """``name`` and ``tag`` of ``name[:tag]``; a colon before the last slash is a port's."""
    name, colon, tag = named.rpartition(":")
    if not colon or "/" in tag:
        return named, None
    return name, tag


def _split(name: str) -> tuple[str, str]:
    """Domain and repository, with what is left out filled in."""
    first, slash, rest = name.partition("/")
    if slash and (re.search(r"[.:\[]", first) or first == "localhost" or first != first.lower()):
        domain, repository = first.lower(), rest
    else:
        domain, repository = DOCKER_HUB, name
    if domain == _DOCKER_HUB_OLD:
        domain = DOCKER_HUB
    if domain == DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    return domain, repository


def _domain_problem(domain: str) -> str | None:
    matched = _DOMAIN.fullmatch(domain)
    if matched is None or len(matched["host"]) > 255:
        return f"{domain[:100]!r} is no registry; one is host[:port], like ghcr.io or [::1]:5000"
    if matched["port"] and not 0 < int(matched["port"]) < 1 << 16:
        return f"{matched['port']} is no port; one is 1 to 65535"
    if matched["ipv6"]:
        try:
            ipaddress.IPv6Address(matched["ipv6"])
        except ValueError:
            return f"{matched['host'][:100]!r} is no IPv6 address"
    return None


def _repository_problem(repository: str) -> str | None:
    if len(repository) > REPOSITORY_LIMIT:
        return f"a repository's name has at most {REPOSITORY_LIMIT} characters"
    if _REPOSITORY.fullmatch(repository):
        return None
    if _REPOSITORY.fullmatch(repository.lower()):
        return f"a repository's name is in lower case: {repository.lower()}"
    return (
        "a repository's name is words of a-z and 0-9, with one of . _ or __ or dashes "
        "between them, separated by /"
    )
