"""What the content store decides at start."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ctd.model import Digest
from ctd.storage.recovery import Found, Left, Repair, plan

DIGESTS = [Digest.of(bytes([n])) for n in range(5)]
SIZES = st.dictionaries(st.sampled_from(DIGESTS), st.integers(0, 2))
LEFT = st.lists(
    st.builds(
        Left,
        st.sampled_from(["r1", "r2", "r3"]),
        st.sampled_from(["i1", "i2", "i3"]),
        st.sampled_from(DIGESTS),
        st.sampled_from(["this", "other"]),
    ),
    unique_by=(lambda i: i.ref, lambda i: i.id),
)
INGESTS = st.dictionaries(st.sampled_from(["i1", "i2", "i3", "i4"]), st.booleans())


class PlanTests(SynchronousTestCase):
    """The plan, over everything that may be found."""

    def test_nothing(self) -> None:
        """Where files and records agree there is nothing to do."""
        found = Found({DIGESTS[0]: 1}, [], {"i1": True})
        left = [Left("r1", "i1", DIGESTS[1], "this")]
        self.assertEqual(plan(found, {DIGESTS[0]: 1}, left, "this"), Repair({}, [], [], [], [], []))

    @given(SIZES, SIZES, INGESTS, LEFT)
    def test_carried_out(
        self,
        files: dict[Digest, int],
        records: dict[Digest, int],
        ingests: dict[str, bool],
        left: list[Left],
    ) -> None:
        """Once it is carried out, files and records agree, and there is nothing left to do."""
        repair = plan(Found(files, [], ingests), records, left, "this")
        aside = {Path("blobs", d.algorithm, d.hex): d for d in files}
        files_then = {d: s for d, s in files.items() if d not in map(aside.get, repair.aside)}
        records_then = {
            d: s for d, s in records.items() if d not in (*repair.lost, *repair.damaged)
        } | dict(repair.adopt)
        ingests_then = {i: f for i, f in ingests.items() if i not in repair.sweep}
        left_then = [i for i in left if i.ref not in repair.forget]
        self.assertEqual(files_then, records_then)
        self.assertEqual(set(ingests_then), {i.id for i in left_then})
        again = plan(Found(files_then, [], ingests_then), records_then, left_then, "this")
        self.assertEqual(again, Repair({}, [], [], [], [], []))
