"""Access to registries: who is sent whose credentials, and who never is."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

from twisted.trial.unittest import SynchronousTestCase

from ctd.fetch.auth import REMEMBERED, TOKEN_LIMIT
from ctd.fetch.errors import MalformedDocument, RegistryUnavailable, Unauthorized
from ctd.fetch.reference import Reference
from ctd.model import Descriptor
from tests.unit.fetch.stage import (
    BLOB,
    LAYER,
    MANIFEST,
    FakeRegistry,
    Reply,
    Request,
    Stage,
    collect,
)

REF = Reference.parse("reg.example/a/b:1")
REGISTRY = "https://reg.example:443"
TOKENS = "https://auth.example:443"
BASIC = "Basic " + base64.b64encode(b"user:p:w").decode()
DEMAND = 'Bearer realm="https://auth.example/token?x=1",service="reg",scope="repository:other:*"'


class TokenServer:
    """Gives a new token each time.

    :ivar fields: more of its reply.
    :ivar users: the Authorizations it takes.
    """

    def __init__(self, registry: FakeRegistry) -> None:
        self.registry = registry
        self.fields: dict[str, object] = {}
        self.users: set[str | None] = {None, BASIC}
        self.given = 0
        self.reply: Reply | None = None

    def __call__(self, request: Request) -> Reply:
        if self.reply is not None:
            return self.reply
        if request.headers.get("Authorization") not in self.users:
            return Reply(401)
        self.given += 1
        token = f"t{self.given}"
        self.registry.accepts = {f"Bearer {token}"}
        return Reply(200, json.dumps({"token": token, **self.fields}).encode())


class AuthTestCase(SynchronousTestCase):
    def start(
        self,
        demand: str,
        credentials: Mapping[str, tuple[str, str]] | None = None,
        insecure: tuple[str, ...] = (),
    ) -> None:
        self.stage = Stage(credentials, insecure)
        self.fake, self.network = self.stage.fake, self.stage.network
        self.fake.demand = demand
        self.tokens = TokenServer(self.fake)
        self.network.servers[TOKENS] = self.tokens

    def resolve(self, ref: Reference = REF, plain_http: bool | None = None) -> Descriptor:
        return self.stage.result(self.stage.registry.resolve(ref, plain_http)).descriptor


USER = {"reg.example": ("user", "p:w")}


class BasicTests(AuthTestCase):
    """A user and a password."""

    def test_sent_when_asked(self) -> None:
        """A password is sent after the registry has asked, and at once from then on."""
        self.start('Basic realm="x"', USER)
        self.fake.accepts = {BASIC}
        self.assertEqual(self.resolve(), MANIFEST)
        self.assertEqual(self.resolve(), MANIFEST)
        self.assertEqual(self.network.sent(REGISTRY), [None, BASIC, BASIC])

    def test_none(self) -> None:
        """Without credentials, or with refused ones, access is refused after two tries at most."""
        for known, tries in ((None, 1), (USER, 2), ({"other.example": ("user", "p:w")}, 1)):
            self.start('Basic realm="x"', known)
            with self.assertRaises(Unauthorized) as caught:
                self.resolve()
            self.assertEqual(
                caught.exception.fields,
                {"host": "reg.example", "repository": "a/b", "status": 401},
            )
            self.assertEqual(len(self.network.requests), tries)

    def test_changed(self) -> None:
        """A password that is refused later is looked up again and not sent for ever."""
        self.start('Basic realm="x"', USER)
        self.fake.accepts = {BASIC}
        self.resolve()
        self.fake.accepts = set()
        for _ in range(2):
            with self.assertRaises(Unauthorized):
                self.resolve()

    def test_not_in_plain_http(self) -> None:
        """A request alone cannot bring a password onto the wire in plain HTTP; the operator can."""
        for insecure, sent in (((), [None]), (("reg.example",), [None, BASIC])):
            self.start('Basic realm="x"', USER, insecure)
            self.network.servers["http://reg.example:80"] = self.fake
            with self.assertRaises(Unauthorized):
                self.resolve(plain_http=True)
            self.assertEqual(self.network.sent("http://reg.example:80"), sent)

    def test_loopback(self) -> None:
        """A registry on loopback gets its password in plain HTTP."""
        self.start("Basic", {"localhost:5000": ("user", "p:w")})
        self.network.servers["http://localhost:5000"] = self.fake
        self.fake.accepts = {BASIC}
        self.assertEqual(self.resolve(Reference.parse("localhost:5000/a/b:1")), MANIFEST)

    def test_other_scheme(self) -> None:
        """A scheme that ctd does not speak gets nothing."""
        self.start("Negotiate, Digest realm=x", USER)
        with self.assertRaises(Unauthorized):
            self.resolve()
        self.assertEqual(self.network.sent(REGISTRY), [None])


class RedirectTests(AuthTestCase):
    """Credentials stay at home."""

    def follow(self, *locations: str) -> None:
        """Authorized requests for blobs are sent on to *locations*, one after another."""
        self.fake.accepts = {BASIC}
        left = list(locations)

        def change(request: Request, reply: Reply) -> Reply:
            if reply.status == 401 or "/blobs/" not in request.path or not left:
                return reply
            return Reply(307, b"", {"Location": left.pop(0)})

        self.fake.change = change

    def blob(self) -> bytes:
        stage = self.stage
        return stage.result(collect(stage.result(stage.registry.blob(REF, LAYER))))

    def test_other_origin(self) -> None:
        """Another host, port or scheme gets no Authorization."""
        for origin in ("https://cdn.example:443", "https://reg.example:8443"):
            self.start("Basic", USER)
            seen = FakeRegistry()
            self.network.servers[origin] = seen
            self.follow(f"{origin}/v2/a/b/blobs/{LAYER.digest}")
            self.assertEqual(self.blob(), BLOB)
            self.assertEqual(self.network.sent(origin), [None])

    def test_same_origin(self) -> None:
        """A redirect within the registry keeps the Authorization, whatever way it is written."""
        self.start("Basic", USER)
        self.follow(f"https://REG.example:443/v2/a/b/blobs/{LAYER.digest}")
        self.assertEqual(self.blob(), BLOB)
        self.assertEqual(self.network.sent(REGISTRY), [None, BASIC, BASIC])

    def test_there_and_back(self) -> None:
        """A redirect that comes home from elsewhere does not bring the Authorization back."""
        self.start("Basic", USER)
        home = f"https://reg.example/v2/a/b/blobs/{LAYER.digest}"
        self.network.servers["https://cdn.example:443"] = lambda request: Reply(
            307, b"", {"Location": home}
        )
        self.follow("https://cdn.example/")
        with self.assertRaises(Unauthorized):
            self.blob()
        self.assertEqual(self.network.sent("https://cdn.example:443"), [None])
        self.assertEqual(self.network.sent(REGISTRY), [None, BASIC, None])

    def test_foreign_challenge(self) -> None:
        """A 401 from where a redirect led is not answered (CVE-2020-15157)."""
        for challenge in ("Basic", 'Bearer realm="https://evil.example/"'):
            self.start("Basic", USER)
            self.network.servers["https://evil.example:443"] = lambda request, ask=challenge: Reply(
                401, b"", {"WWW-Authenticate": ask}
            )
            self.follow("https://evil.example/x")
            with self.assertRaises(Unauthorized):
                self.blob()
            self.assertEqual(self.network.sent("https://evil.example:443"), [None])


class TokenTests(AuthTestCase):
    """Tokens, from the server that the registry names."""

    def test_anonymous(self) -> None:
        """Without credentials a token is asked for anonymously, to read that repository alone."""
        self.start(DEMAND)
        self.assertEqual(self.resolve(), MANIFEST)
        (asked,) = [r for r in self.network.requests if r.origin == TOKENS]
        self.assertEqual(
            asked.query, {"x": ["1"], "service": ["reg"], "scope": ["repository:a/b:pull"]}
        )
        self.assertEqual(self.network.sent(TOKENS), [None])
        self.assertEqual(self.network.sent(REGISTRY), [None, "Bearer t1"])

    def test_credentials(self) -> None:
        """The token server gets the credentials of the registry that names it; that gets none."""
        self.start(DEMAND, {**USER, "auth.example": ("other", "secret")})
        self.tokens.users = {BASIC}
        self.assertEqual(self.resolve(), MANIFEST)
        self.assertEqual(self.network.sent(TOKENS), [BASIC])
        self.assertNotIn(BASIC, self.network.sent(REGISTRY))

    def test_docker_hub(self) -> None:
        """Docker Hub's credentials are those of docker.io."""
        self.start(DEMAND, {"docker.io": ("user", "p:w")})
        self.network.servers["https://registry-1.docker.io:443"] = self.fake
        self.assertEqual(self.resolve(Reference.parse("docker.io/a/b:1")), MANIFEST)
        self.assertEqual(self.network.sent(TOKENS), [BASIC])

    def test_kept_until_it_expires(self) -> None:
        """A token is used again while it lives and got anew after that; one a repository."""
        self.start(DEMAND)
        self.tokens.fields = {"expires_in": 300}
        self.resolve()
        self.stage.wait(260)
        self.resolve()
        self.assertEqual(self.tokens.given, 1)
        self.stage.wait(20)
        self.resolve()
        self.assertEqual(self.tokens.given, 2)
        self.fake.documents["c:1"] = self.fake.documents["a/b:1"]
        self.resolve(Reference.parse("reg.example/c:1"))
        self.assertEqual(self.tokens.given, 3)

    def test_lifetimes(self) -> None:
        """A token that does not say how long it lives lives a minute; a negative time is none."""
        for fields, seconds, given in (({}, 50, 1), ({}, 60, 2), ({"expires_in": -5}, 0, 2)):
            self.start(DEMAND)
            self.tokens.fields = fields
            self.resolve()
            self.stage.wait(seconds)
            self.resolve()
            self.assertEqual(self.tokens.given, given)

    def test_revoked(self) -> None:
        """A token that is refused early is replaced, once."""
        self.start(DEMAND)
        self.resolve()
        self.fake.accepts = set()
        self.assertEqual(self.resolve(), MANIFEST)
        self.assertEqual(self.tokens.given, 2)

    def test_side_by_side(self) -> None:
        """Requests side by side share one token."""
        self.start(DEMAND)
        asking = [self.stage.begin(self.stage.registry.resolve(REF)) for _ in range(5)]
        self.stage.wait(1)
        for one in asking:
            self.assertEqual(self.successResultOf(one).descriptor, MANIFEST)
        self.assertEqual(self.tokens.given, 1)

    def test_access_token(self) -> None:
        """OAuth's name of the field is understood."""
        self.start(DEMAND)
        self.tokens.reply = Reply(200, b'{"access_token": "a"}')
        self.fake.accepts = {"Bearer a"}
        self.assertEqual(self.resolve(), MANIFEST)

    def test_refused(self) -> None:
        """A token server that refuses, or whose token is not enough, is a lack of rights."""
        self.start(DEMAND, USER)
        self.tokens.users = set()
        with self.assertRaises(Unauthorized):
            self.resolve()
        self.tokens.reply = Reply(200, b'{"token": "useless"}')
        with self.assertRaises(Unauthorized):
            self.resolve()

    def test_failures(self) -> None:
        """A token server that fails is an unavailable registry; junk is no token."""
        self.start(DEMAND)
        for status in (404, 429, 500):
            self.tokens.reply = Reply(status, b"s3cret")
            with self.assertRaises(RegistryUnavailable) as unavailable:
                self.resolve()
            self.assertNotIn("s3cret", str(unavailable.exception))
        for body in (b"", b"[]", b"{}", b'{"token": "s3cret\\r\\nX: y"}', b'{"token": 1}', b"\xff"):
            self.tokens.reply = Reply(200, body)
            with self.assertRaises(MalformedDocument) as malformed:
                self.resolve()
            self.assertNotIn("s3cret", str(malformed.exception))

    def test_huge(self) -> None:
        """A token over the limit is not read to its end."""
        self.start(DEMAND)
        self.tokens.reply = Reply(200, b'{"token": "' + b"x" * (TOKEN_LIMIT + (1 << 20)))
        with self.assertRaises(Exception) as caught:
            self.resolve()
        self.assertEqual(caught.exception.kind, "resource_exhausted")  # type: ignore[attr-defined]
        self.assertLess(self.network.delivered, TOKEN_LIMIT + (1 << 18))

    def test_bad_realms(self) -> None:
        """A token server in plain HTTP, of another scheme, or without a name gets nothing."""
        for realm in (
            "http://auth.example/token",
            "file:///etc/passwd",
            "https://u:p@auth.example/",
            "/token",
            "",
            "https://auth.example:0/",
        ):
            self.start(f'Bearer realm="{realm}"', USER)
            with self.assertRaises(RegistryUnavailable):
                self.resolve()
            self.assertEqual({r.origin for r in self.network.requests}, {REGISTRY})

    def test_plain_realm_of_plain_registry(self) -> None:
        """A registry in plain HTTP may have its token server there too."""
        self.start('Bearer realm="http://auth.example/t"', {"localhost": ("user", "p:w")})
        self.network.servers["http://localhost:80"] = self.fake
        self.network.servers["http://auth.example:80"] = self.tokens
        self.assertEqual(self.resolve(Reference.parse("localhost/a/b:1")), MANIFEST)

    def test_redirecting_token_server(self) -> None:
        """A token server that redirects does not take the password along."""
        self.start(DEMAND, USER)
        self.tokens.reply = Reply(302, b"", {"Location": "https://evil.example/"})
        self.network.servers["https://evil.example:443"] = lambda request: Reply(401)
        with self.assertRaises(Unauthorized):
            self.resolve()
        self.assertEqual(self.network.sent("https://evil.example:443"), [None])

    def test_bounded_memory(self) -> None:
        """No more than a number of repositories is remembered."""
        self.start(DEMAND)
        for number in range(REMEMBERED + 3):
            self.fake.documents[f"r{number}:1"] = self.fake.documents["a/b:1"]
            self.resolve(Reference.parse(f"reg.example/r{number}:1"))
        self.assertEqual(len(self.stage.registry._authorizer._accesses), REMEMBERED)

    def test_nothing_secret_is_shown(self) -> None:
        """What is remembered does not show its secret when it is printed."""
        self.start(DEMAND)
        self.resolve()
        self.assertNotIn("t1", repr(self.stage.registry._authorizer._accesses))
