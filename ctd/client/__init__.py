"""The client library: a daemon's methods from a Twisted program.

::

    client = await Client.connect(UNIXClientEndpoint(reactor, "/run/ctd/ctd.sock"))
    image = await client.call("images.pull", {"ref": "alpine"}, progress=print)
    async for event in client.events(since=0):
        ...
"""

from ctd.client.connection import Client
from ctd.client.errors import RemoteError

__all__ = ["Client", "RemoteError"]
