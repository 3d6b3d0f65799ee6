"""The documents in design/ against the code they speak of."""

from __future__ import annotations

import re
import unittest
from pathlib import Path
from typing import Any

from ctd.runtime import lifecycle

DESIGN = Path(__file__).parents[2] / "design"


def drawn(machine: str) -> set[tuple[str, str, str]]:
    """The transitions of the drawing that says it is *machine*."""
    text = (DESIGN / "lifecycles.md").read_text()
    blocks = re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL)
    (block,) = [b for b in blocks if f"%% machine: {machine}\n" in b]
    return set(re.findall(r"^ *(\w+) --> (\w+): (\w+)$", block, re.MULTILINE))


def built(machine: Any) -> set[tuple[str, str, str]]:
    """The transitions of a machine that change its state."""
    table = machine.__automat_automaton__.allTransitions()
    return {(old.name, new.name, symbol) for old, symbol, new, _ in table if old is not new}


class LifecycleDocumentTests(unittest.TestCase):
    """design/lifecycles.md."""

    def test_container(self) -> None:
        """The drawing of a container's life is its machine."""
        self.assertEqual(drawn("container"), built(lifecycle.CONTAINER))

    def test_process(self) -> None:
        """The drawing of a process's life is its machine."""
        self.assertEqual(drawn("process"), built(lifecycle.PROCESS))


class LinkTests(unittest.TestCase):
    """Links between documents."""

    def test_links(self) -> None:
        """Every relative link of every document leads to a file."""
        top = DESIGN.parent
        for document in [*DESIGN.glob("*.md"), *top.glob("*.md"), *(top / "reports").glob("*.md")]:
            for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
                with self.subTest(document=document.name, target=target):
                    self.assertTrue((document.parent / target).exists())

    def test_modules(self) -> None:
        """Every module that a document names is there."""
        for document in DESIGN.glob("*.md"):
            for name in re.findall(r"`(ctd/[a-z_/]+(?:\.py|/))`", document.read_text()):
                with self.subTest(document=document.name, module=name):
                    self.assertTrue((DESIGN.parent / name).exists())
