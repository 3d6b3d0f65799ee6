"""Credentials from a mapping and from Docker's configuration file."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from ctd.fetch.credentials import FILE_LIMIT, DockerCredentials, StaticCredentials
from ctd.fetch.errors import MalformedDocument
from ctd.fetch.interfaces import ICredentials
from ctd.threads import InlineWorkers


def auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


class CredentialsTests(SynchronousTestCase):
    """Look-ups by host."""

    def lookup(self, credentials: Any, host: str) -> tuple[str, str] | None:
        verifyObject(ICredentials, credentials)
        found: tuple[str, str] | None = self.successResultOf(
            Deferred.fromCoroutine(credentials.lookup(host))
        )
        return found

    def written(self, body: bytes) -> DockerCredentials:
        path = Path(self.mktemp())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        return DockerCredentials(InlineWorkers(), path)

    def test_static(self) -> None:
        """What is not known is None."""
        self.assertIsNone(self.lookup(StaticCredentials(), "a"))
        self.assertEqual(self.lookup(StaticCredentials({"a": ("b", "c")}), "a"), ("b", "c"))

    def test_docker(self) -> None:
        """Hosts are found however docker login has written them; the first one counts."""
        auths = {
            "https://index.docker.io/v1/": auth("hub:p:w"),
            "reg.example:5000": auth("user:pw"),
            "https://GHCR.io/v1/": {"username": "u", "password": "p"},
            "ghcr.io": auth("later:x"),
            "empty.example": {},
            "null.example": None,
            "helper.example": {"auth": ""},
            "junk.example": {"auth": "*"},
            "nocolon.example": auth("user"),
        }
        credentials = self.written(json.dumps({"auths": auths, "credsStore": "x"}).encode())
        for host, pair in (
            ("docker.io", ("hub", "p:w")),
            ("reg.example:5000", ("user", "pw")),
            ("ghcr.io", ("u", "p")),
            ("reg.example", None),
            *((f"{name}.example", None) for name in ("empty", "null", "helper", "junk", "nocolon")),
        ):
            self.assertEqual(self.lookup(credentials, host), pair)

    def test_no_file(self) -> None:
        """A file that is not there knows nobody."""
        missing = DockerCredentials(InlineWorkers(), Path("/nowhere/at/all"))
        self.assertIsNone(self.lookup(missing, "a"))

    def test_bad_file(self) -> None:
        """A file that cannot be used is an error that names it and shows nothing of it."""
        for body in (b"", b"[]", b'{"auths": {"a": {"auth": 5, "password": "s3cret"}}}', b"\xff"):
            work = Deferred.fromCoroutine(self.written(body).lookup("a"))
            error = self.failureResultOf(work, MalformedDocument).value
            self.assertNotIn("s3cret", str(error))
        big = Deferred.fromCoroutine(self.written(b" " * (FILE_LIMIT + 1)).lookup("a"))
        self.failureResultOf(big, MalformedDocument)
        directory = Deferred.fromCoroutine(
            DockerCredentials(InlineWorkers(), Path("/proc")).lookup("a")
        )
        self.failureResultOf(directory, MalformedDocument)
