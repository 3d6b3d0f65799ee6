"""How far a pull is, told to everyone who waits for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from ctd.images.interfaces import PullProgress
from ctd.model import Descriptor


@attrs.define(eq=False)
class LayerProgress:
    """One layer: bytes of its blob downloaded and unpacked."""

    descriptor: Descriptor
    downloaded: int = 0
    unpacked: int = 0
    state: str = "waiting"


class Progress:
    """The state of one pull, and who is told when it changes."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[PullProgress], None]] = []
        self._phase = "resolving"
        self._layers: list[LayerProgress] = []

    def listen(self, listener: Callable[[PullProgress], None]) -> Callable[[], None]:
        """Tell *listener* now and at every change, until what is given back is called."""
        self._listeners.append(listener)
        listener(self.snapshot())
        return lambda: self._listeners.remove(listener)

    def phase(self, phase: str) -> None:
        """The pull has come to *phase*."""
        self._phase = phase
        self._tell()

    def layers(self, descriptors: Sequence[Descriptor]) -> Sequence[LayerProgress]:
        """The pull is of these layers."""
        self._layers = [LayerProgress(d) for d in descriptors]
        self.phase("downloading")
        return self._layers

    def downloaded(self, layer: LayerProgress, offset: int) -> None:
        """*offset* bytes of *layer* are here."""
        layer.downloaded = offset
        complete = offset >= layer.descriptor.size
        if layer.state != "unpacked":
            layer.state = "downloaded" if complete else "downloading"
        if self._phase == "downloading" and all(
            one.downloaded >= one.descriptor.size for one in self._layers
        ):
            self._phase = "unpacking"
        self._tell()

    def unpacked(self, layer: LayerProgress, read: int, done: bool = False) -> None:
        """*read* bytes of *layer* are unpacked."""
        layer.unpacked = layer.descriptor.size if done else read
        if done:
            layer.state = "unpacked"
        self._tell()

    def snapshot(self) -> PullProgress:
        """The state as a value."""
        return PullProgress(
            self._phase,
            sum(layer.downloaded for layer in self._layers),
            sum(layer.descriptor.size for layer in self._layers),
            sum(layer.unpacked for layer in self._layers),
            tuple(
                {
                    "digest": str(layer.descriptor.digest),
                    "downloaded": layer.downloaded,
                    "unpacked": layer.unpacked,
                    "total": layer.descriptor.size,
                    "state": layer.state,
                }
                for layer in self._layers
            ),
        )

    def _tell(self) -> None:
        if self._listeners:
            value = self.snapshot()
            for listener in list(self._listeners):
                listener(value)
