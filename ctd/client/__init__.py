"""The Twisted client library."""
