"""What figures show, read back from them."""

from collections import Counter

import plotly.graph_objects as go


def bars(figure: go.Figure, name: str | None = None) -> dict[str, int]:
    """{category: length} of one trace of horizontal bars, or of all of them added up."""
    total: Counter = Counter()
    for trace in figure.data:
        if trace.type == "bar" and name in (None, trace.name):
            total.update({str(y): int(x) for y, x in zip(trace.y, trace.x, strict=True)})
    return dict(total)
