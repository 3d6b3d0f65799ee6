"""rpc.*: the protocol about itself."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from ctd import __version__
from ctd.protocols.call import Call
from ctd.protocols.control.results import Result
from ctd.protocols.methods import Example, MethodTable, method
from ctd.protocols.openrpc import document
from ctd.protocols.params import Params


class CancelParams(Params, frozen=True, kw_only=True):
    """Which call."""

    call: Annotated[int | str, Meta(description="The `id` of the call, on this connection.")]


class Cancelling(Result, frozen=True, kw_only=True):
    """Whether there was anything to cancel."""

    found: Annotated[
        bool, Meta(description="False: the call had ended already, or there never was one.")
    ]


class Discover(Params, frozen=True, kw_only=True):
    """Nothing."""


class Rpc:
    """The protocol's own methods.  :param table: described by ``rpc.discover``."""

    def __init__(self, table: MethodTable) -> None:
        self._table = table
        self._document: dict[str, Any] | None = None

    @method("rpc.discover")
    async def discover(self, call: Call, params: Discover) -> dict[str, Any]:
        """This document: every method with its parameters, result, errors and examples."""
        if self._document is None:
            self._document = document(self._table, __version__)
        return self._document

    @method("rpc.cancel", examples=(Example({"call": 7}, {"found": True}),))
    async def cancel(self, call: Call, params: CancelParams) -> Cancelling:
        """Cancel another call of this connection.

        The cancelled call is answered with an error of the kind `cancelled`
        once what it had begun is undone, or with its result if it had just
        ended.  Cancelling it again changes nothing.
        """
        return Cancelling(found=call.cancel(params.call))
