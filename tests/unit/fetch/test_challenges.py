"""WWW-Authenticate headers, as servers write them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ctd.fetch.challenges import Challenge, challenges


class ChallengesTests(SynchronousTestCase):
    """Headers read."""

    def check(self, header: str, *expected: tuple[str, dict[str, str]]) -> None:
        self.assertEqual(challenges([header]), [Challenge(*one) for one in expected])

    def test_bearer(self) -> None:
        """Parameters come in any order, quoted or not, with spaces or without."""
        self.check(
            'Bearer realm="https://a/t",service="x",scope="repository:a/b:pull,push"',
            (
                "bearer",
                {"realm": "https://a/t", "service": "x", "scope": "repository:a/b:pull,push"},
            ),
        )
        self.check('BEARER  Realm = "a" , error=bad', ("bearer", {"realm": "a", "error": "bad"}))

    def test_quotes(self) -> None:
        """A quoted value may hold quotes, commas and equals signs."""
        self.check(r'Basic realm="a\"b, c=\\d"', ("basic", {"realm": 'a"b, c=\\d'}))

    def test_several(self) -> None:
        """Several challenges come in one header or in several."""
        both = ("negotiate", {}), ("basic", {"realm": "x"})
        self.check('Negotiate, Basic realm="x"', *both)
        self.check('Basic realm="x", Negotiate', both[1], both[0])
        self.check("Negotiate YWJj==, Basic realm=x", *both)
        self.assertEqual(
            challenges(["Negotiate", "Basic realm=x"]), [Challenge(*one) for one in both]
        )

    def test_bare(self) -> None:
        """A scheme may come alone."""
        self.check("Basic", ("basic", {}))
        self.check("", *())

    def test_first_of_a_name_counts(self) -> None:
        """A parameter that comes again does not replace the first."""
        self.check('Bearer realm="a",realm="b"', ("bearer", {"realm": "a"}))

    def test_junk(self) -> None:
        """What cannot be read ends the header; what came before it counts."""
        self.check('Basic realm="x" ;;; Bearer realm="y"', ("basic", {"realm": "x"}))
        self.check("\x00\x01")

    @given(st.text(max_size=200))
    def test_any_text(self, header: str) -> None:
        """Any text gives a list."""
        self.assertIsInstance(challenges([header]), list)

    def test_bounded(self) -> None:
        """Headers of hostile lengths are read quickly and give few challenges."""
        for header in (
            "A, " * 100_000,
            "A " + "a=b," * 100_000,
            'A a="' + "\\" * 100_000,
            "," * 99999,
        ):
            self.assertLessEqual(len(challenges([header] * 20)), 16)
