"""Where a run's files are: values only, nothing is touched."""

from __future__ import annotations

from pathlib import Path

import attrs

from ctd.protocols import shim as words


@attrs.frozen
class Places:
    """The directories of all runs (design/shim-protocol.md, "Directories").

    :ivar root: the daemon's root directory.
    :ivar state: its state directory.
    """

    root: Path
    state: Path

    @property
    def shims(self) -> Path:
        """What holds every shim's directory."""
        return self.state / "shims"

    @property
    def runs(self) -> Path:
        """What holds every run's exit records."""
        return self.root / "runs"

    @property
    def runtime_root(self) -> Path:
        """The OCI runtime's own state."""
        return self.state / "runtime"

    def shim(self, run: str) -> Path:
        """A shim's directory."""
        return self.shims / run

    def description(self, run: str) -> Path:
        """What a shim says of itself."""
        return self.shim(run) / words.SHIM_FILE

    def bundle(self, run: str) -> Path:
        """A run's bundle."""
        return self.shim(run) / words.BUNDLE

    def records(self, run: str) -> Path:
        """A run's exit records."""
        return self.runs / run

    def attach(self, run: str, process: str) -> Path:
        """A process's attach socket."""
        return self.shim(run) / words.attach_file(process)
