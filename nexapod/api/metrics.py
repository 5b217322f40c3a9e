"""Metrics in Prometheus' text format 0.0.4. Pure: values in, text out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from nexapod.api.backend import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
_LABEL_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


def render(metrics: Iterable[Metric]) -> str:
    """The page that a Prometheus server scrapes. Asserts that names follow its rules."""
    lines: list[str] = []
    for metric in metrics:
        assert _NAME.match(metric.name), metric.name
        assert (metric.kind == "counter") == metric.name.endswith("_total"), metric.name
        name = f"nexapod_{metric.name}"
        lines.append(f"# HELP {name} {metric.help.translate(_HELP_ESCAPES)}")
        lines.append(f"# TYPE {name} {metric.kind}")
        lines += [f"{name}{_labels(labels)} {_value(value)}" for labels, value in metric.samples]
    return "\n".join(lines) + "\n"


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    assert all(_NAME.match(key) for key in labels), labels
    return "{" + ",".join(f'{key}="{value.translate(_LABEL_ESCAPES)}"' for key, value in labels.items()) + "}"


def _value(value: int | float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")
    return repr(value)
