"""What can go wrong with container images, and whose doing it is."""

from __future__ import annotations

from nexapod.protocol.errors import LocalError


class ImageError(LocalError):
    """A container image cannot be used as asked."""


class BadImage(ImageError):
    """What is called an image is none, or not the one that it is called: whoever made it has to mend it."""


class ImageUnavailable(ImageError):
    """This machine cannot have the image now: no engine, no room, nobody to fetch it from. Another may."""


class EngineSilent(ImageUnavailable):
    """The container engine did not answer, or was not done in time. What it was asked for may still come about."""
