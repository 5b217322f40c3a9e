"""The names by which a job may call a container image: a content id, or a registry's reference by digest."""

from __future__ import annotations

import re

_HEX = frozenset("0123456789abcdef")
_REGISTRY_NAME = re.compile(
    r"(?P<host>[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[0-9]{1,5})?)/"
    r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*@sha256:[0-9a-f]{64}"
)
"""A reference as the registry API has it, with its host spelled out and no tag: those can be moved."""


def is_content_id(image: str) -> bool:
    """Whether it is `sha256:` and 64 lower-case hex digits."""
    scheme, _, digits = image.partition(":")
    return scheme == "sha256" and len(digits) == 64 and set(digits) <= _HEX


def registry_host(image: str) -> str | None:
    """The host of a registry's reference by digest; None for anything else."""
    found = _REGISTRY_NAME.fullmatch(image)
    return found["host"] if found else None
