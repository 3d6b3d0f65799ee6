"""The ``ctd`` command: plain sockets and the standard library, so that it starts fast.

Nothing here imports Twisted or a part of the daemon; each command's module is
imported only when that command is run.
"""

from ctd.cli.entry import main

__all__ = ["main"]
