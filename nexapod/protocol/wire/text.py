"""What text may contain, by a table of its own: the same under every interpreter (docs/protocol.md, Text).

Unicode's tables differ between versions of Python, so nothing here asks the interpreter what a character is.
"""

from __future__ import annotations

import re
from typing import Final

FORBIDDEN: Final[tuple[tuple[int, int], ...]] = (
    (0x0000, 0x0008),  # control characters, but for tab (0009) and line feed (000A)
    (0x000B, 0x001F),
    (0x007F, 0x009F),
    (0x00AD, 0x00AD),  # soft hyphen: shown or not, as the terminal likes
    (0x061C, 0x061C),  # directions, which reorder what stands around them
    (0x200B, 0x200B),  # zero width space
    (0x200E, 0x200F),
    (0x2028, 0x202E),  # line and paragraph separators, directions
    (0x2060, 0x206F),
    (0xD800, 0xDFFF),  # surrogates: no UTF-8 has them
    (0xFDD0, 0xFDEF),  # noncharacters
    (0xFEFF, 0xFEFF),  # byte order mark
    (0xFFF9, 0xFFFB),
    (0xE0000, 0xE0FFF),  # tags and variation selectors: text that nobody sees
    *((plane << 16 | 0xFFFE, plane << 16 | 0xFFFF) for plane in range(17)),
)
"""Code points that no text may contain, as inclusive ranges."""

_FORBIDDEN: Final = re.compile(
    "[" + "".join(f"{re.escape(chr(low))}-{re.escape(chr(high))}" for low, high in FORBIDDEN) + "]"
)


def allowed(value: str) -> bool:
    """Whether text holds none of the forbidden code points."""
    return _FORBIDDEN.search(value) is None


def clean(value: str, bytes_max: int) -> str:
    """Text of ours made fit to be sent: forbidden code points as `?`, cut to so many bytes of UTF-8."""
    visible = _FORBIDDEN.sub("?", value)
    return visible.encode("utf-8", "replace")[:bytes_max].decode("utf-8", "ignore")
