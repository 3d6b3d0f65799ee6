"""The table of methods, collected from typed functions.

A method is a coroutine function of a service object, marked with
:func:`method`; its annotations are its parameters and its result::

    class Images:
        @method("images.get", errors=("not_found",), examples=(...,))
        async def get(self, call: Call, params: Get) -> Image:
            \"\"\"An image by name or digest.\"\"\"
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

import attrs

from ctd.protocols.call import Call
from ctd.protocols.jsonrpc import CODES, MethodNotFound
from ctd.protocols.params import Params, clip, suggest

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])


@attrs.frozen
class Example:
    """A call and its answer, for the documentation; tests hold both to the method's types."""

    params: Mapping[str, Any]
    result: Any


@attrs.frozen
class Method:
    """One method.

    :ivar params: a subclass of :class:`Params`.
    :ivar result: a type msgspec can encode, a struct.
    :ivar errors: kinds of errors to expect, besides invalid_argument, cancelled and internal.
    """

    name: str
    params: type[Params]
    result: type
    handler: Callable[[Call, Any], Awaitable[Any]]
    doc: str
    errors: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()


@attrs.frozen
class _Mark:
    name: str
    errors: tuple[str, ...]
    examples: tuple[Example, ...]


def method(
    name: str, *, errors: tuple[str, ...] = (), examples: tuple[Example, ...] = ()
) -> Callable[[F], F]:
    """Make a service's function answer calls of *name*."""
    unknown = set(errors) - set(CODES)
    if unknown:
        raise ValueError(f"{name}: no such kinds of error: {unknown}")

    def mark(function: F) -> F:
        function.__dict__["ctd_method"] = _Mark(name, errors, examples)
        return function

    return mark


def methods_of(service: object) -> Iterator[Method]:
    """The methods of one service object."""
    for _, function in inspect.getmembers(type(service), inspect.isfunction):
        mark = function.__dict__.get("ctd_method")
        if not isinstance(mark, _Mark):
            continue
        types = typing.get_type_hints(function, include_extras=True)
        yield Method(
            mark.name,
            types["params"],
            types["return"],
            function.__get__(service),
            inspect.getdoc(function) or "",
            mark.errors,
            mark.examples,
        )


class MethodTable:
    """Every method of some services, by name.

    :raise ValueError: two have the same name.
    """

    def __init__(self, *services: object) -> None:
        self._methods: dict[str, Method] = {}
        for service in services:
            self.add(service)

    def add(self, service: object) -> None:
        """Add the methods of *service*."""
        for found in methods_of(service):
            if found.name in self._methods:
                raise ValueError(f"two methods are called {found.name}")
            self._methods[found.name] = found

    def __iter__(self) -> Iterator[Method]:
        return iter(sorted(self._methods.values(), key=lambda m: m.name))

    def find(self, name: str) -> Method:
        """The method *name*.  :raise MethodNotFound: there is none; it names the nearest."""
        found = self._methods.get(name)
        if found is None:
            raise MethodNotFound(clip(name, 100), suggest(name, self._methods))
        return found
