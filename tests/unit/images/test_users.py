"""Users and groups out of a root file system's own files."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ctd.errors import InvalidArgument
from ctd.images.users import lookup
from ctd.model import User

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
# a comment
broken line
web:x:33:34:web:/var/www:/sbin/nologin
1234:x:77:78:a name of digits:/n:/bin/sh
latin\xe9:x:5:5::/:/bin/sh
"""
GROUP = b"""root:x:0:
www:x:34:
staff:x:50:web,other
wheel:x:10:other,web
half:x
"""


class LookupTests(SynchronousTestCase):
    """``user[:group]`` made into numbers."""

    def test_name(self) -> None:
        """A name gives its entry's numbers, home, and the groups that list it."""
        self.assertEqual(lookup("web", PASSWD, GROUP), User(33, 34, (50, 10), "/var/www"))

    def test_number_with_entry(self) -> None:
        """A number that has an entry is that user."""
        self.assertEqual(lookup("33", PASSWD, GROUP), User(33, 34, (50, 10), "/var/www"))

    def test_number_without_entry(self) -> None:
        """A number needs no entry; its group is then 0."""
        self.assertEqual(lookup("4242", b"", b""), User(4242, 0, (), "/"))

    def test_name_of_digits(self) -> None:
        """A name that looks like a number is found as a name first."""
        self.assertEqual(lookup("1234", PASSWD, GROUP).uid, 77)

    def test_with_group(self) -> None:
        """A group given by name or number is the only one."""
        self.assertEqual(lookup("web:staff", PASSWD, GROUP), User(33, 50, (), "/var/www"))
        self.assertEqual(lookup("web:7", PASSWD, GROUP), User(33, 7, (), "/var/www"))

    def test_empty(self) -> None:
        """No user is root."""
        self.assertEqual(lookup("", b"", b""), User(0, 0, (), "/root"))

    def test_unknown(self) -> None:
        """Names without an entry, and numbers out of range, are named in the error."""
        for text in ("nobody", "web:nogroup", "99999999999", "web:", "-1"):
            with self.assertRaises(InvalidArgument) as caught:
                lookup(text, PASSWD, GROUP)
            self.assertEqual(caught.exception.field, "user")

    @given(st.text(max_size=20), st.binary(max_size=200), st.binary(max_size=200))
    def test_hostile_files(self, user: str, passwd: bytes, group: bytes) -> None:
        """Whatever the files hold, there is a user or InvalidArgument."""
        try:
            found = lookup(user, passwd, group)
        except InvalidArgument:
            return
        self.assertTrue(0 <= found.uid < 1 << 32)
        self.assertTrue(0 <= found.gid < 1 << 32)
