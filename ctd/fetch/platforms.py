"""Which manifest of an index is for a machine."""

from __future__ import annotations

from ctd.fetch.errors import NoSuchPlatform
from ctd.fetch.interfaces import Index
from ctd.model import Descriptor, MediaType, Platform

#: What runs on a machine of a variant besides that variant, the best first.  An arm
#: processor runs code for older ones; an amd64 one that of lower levels.
_FALLBACKS: dict[tuple[str, str], tuple[str, ...]] = {
    ("arm", "v8"): ("v7", "v6", "v5"),
    ("arm", "v7"): ("v6", "v5"),
    ("arm", "v6"): ("v5",),
    ("amd64", "v4"): ("v3", "v2", ""),
    ("amd64", "v3"): ("v2", ""),
}

#: What buildkit marks its attestations with, in an entry's annotations.
_ATTESTATION = ("vnd.docker.reference.type", "attestation-manifest")


def choose(index: Index, platform: Platform) -> Descriptor:
    """The first manifest that fits best; see :class:`ctd.fetch.interfaces.IPlatformChoice`.

    An entry that does not say what it is for is taken only if it is the one
    such entry and no other fits.

    :raise NoSuchPlatform: none fits.
    """
    platform = platform.normalised()
    images = [entry for entry in index.manifests if _is_image(entry)]
    for wanted in acceptable(platform):
        for entry in images:
            if entry.platform is not None and entry.platform.normalised() == wanted:
                return entry
    silent = [entry for entry in images if entry.platform is None]
    if len(silent) == 1:
        return silent[0]
    available = dict.fromkeys(str(entry.platform) for entry in images if entry.platform)
    raise NoSuchPlatform(str(platform), list(available))


def acceptable(platform: Platform) -> list[Platform]:
    """*platform* and what else runs on it, the best first."""
    key = platform.architecture, platform.variant
    # A variant nobody has heard of is still a machine of its architecture.
    others = _FALLBACKS.get(key, ("",) if platform.variant and key[0] != "arm" else ())
    return [
        platform,
        *(Platform(platform.os, platform.architecture, variant) for variant in others),
    ]


def _is_image(entry: Descriptor) -> bool:
    """Whether an entry may be an image: attestations, signatures and the like are not."""
    if entry.media_type not in MediaType.MANIFESTS | MediaType.INDEXES:
        return False
    if entry.annotations.get(_ATTESTATION[0]) == _ATTESTATION[1]:
        return False
    return entry.platform is None or (entry.platform.os, entry.platform.architecture) != (
        "unknown",
        "unknown",
    )
