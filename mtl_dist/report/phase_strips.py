"""Drawing of the phases of several runs, one strip for each run."""

from collections.abc import Sequence

from markupsafe import Markup

from mtl_dist.report.charts import SIZE, Steps, frame
from mtl_dist.report.markup import tag
from mtl_dist.report.records import RunRecord

ROW = 10
"""Height of a strip in the units of the SVG."""


def phase_strips(runs: Sequence[RunRecord], names: Sequence[str], steps: Steps) -> Markup:
    """Returns the strips from the first run at the top to the last, with the names of the phases inside."""
    shapes, inside = [], []
    for index, run in enumerate(runs):
        top = 100 * (index + 0.5) / len(runs)
        for place, span in enumerate(run.spans):
            left, width = steps.axis.share(span.start), steps.axis.share(span.stop - span.start)
            size = {"x": f"{SIZE * left:.2f}", "y": ROW * index + 1, "width": f"{SIZE * width:.2f}", "height": ROW - 2}
            shapes.append(tag("rect", **size, cls=f"strip b{place % 2}"))
            style = f"left:{100 * left:.2f}%;width:{100 * width:.2f}%;top:{top:.2f}%"
            title = f"{span.name}: steps {span.start + 1} to {span.stop}"
            inside.append(tag("span", span.name, title=title, style=style))
    box, title = f"0 0 {SIZE} {ROW * len(runs)}", "phases of each run"
    drawing = tag("svg", shapes, viewBox=box, preserveAspectRatio="none", role="img", aria_label=title)
    labels = [
        tag("span", name, title=name, style=f"bottom:{100 * (len(runs) - index - 0.5) / len(runs):.2f}%")
        for index, name in enumerate(names)
    ]
    plot = tag("div", drawing, tag("div", inside, cls="inside"), cls="plot", style=f"height:{30 * len(runs)}px")
    return tag("figure", frame(plot, labels, steps), cls="chart map")
