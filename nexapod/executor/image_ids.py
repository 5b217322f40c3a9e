"""By what an engine names images: their configuration, as everywhere in the mesh, or their manifest.

Read off what the engine says of itself. Whether it can run tasks and whether an image can be brought into it depend on
it alike, and both say the same. Talks to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

CONTAINERD_STORE: Final = (
    "keeps images in containerd's store, where they have other ids than everywhere else: "
    'set "features": {"containerd-snapshotter": false} in its daemon.json and restart it'
)
"""What an engine does that names them by manifest, and the remedy."""


def names_by_manifest(info: Mapping[str, Any]) -> bool:
    """Whether an engine keeps images in containerd's store, whose ids are those of manifests and not of
    configurations. `info`: its answer to `/info`."""
    status = info.get("DriverStatus") or ()
    return any(
        list(row)[:1] == ["driver-type"] and "containerd" in str(row) for row in status if isinstance(row, Sequence)
    )
