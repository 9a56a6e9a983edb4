"""The page of a comparison with every section that it can have, of runs that look real."""

from __future__ import annotations

from example_run import facts_of, sibling_runs

from peftcli.reports.compare_html import render_comparison_html
from peftcli.reports.fronts import Standing, fronts_section
from peftcli.reports.plots.intervals import Lane, interval_chart
from peftcli.reports.sections.parts import Section
from peftcli.reports.sections.row_parts import PartColumn, PartRow, RowPartsTable

NAMES = ("lora-r-16", "bottleneck", "prompt_tuning", "a-method-with-a-long-name-lora_alpha-32-max_length-1024")


def example_comparison() -> str:
    """The page, as `peft compare` makes it."""
    facts = facts_of("eval_loss")["eval_loss"]
    styles = [f"run-{number}" for number in range(len(NAMES))]
    standings = [
        Standing(name, style, 0.2 + 0.3 * at, (4 - at) * 3e8, 30.0 + 9 * at, 10.0 ** (6 - at))
        for at, (name, style) in enumerate(zip(NAMES, styles, strict=True))
    ]
    lanes = [
        Lane(NAMES[1], styles[1], 0.012, -0.004, 0.031),
        Lane(NAMES[2], styles[2], 0.61, 0.5, 0.7),
        Lane(NAMES[3], styles[3], 0.9, 0.7, 1.1),
    ]
    columns = [PartColumn("B-ORGANISATION", 1204), PartColumn("delivery", 80), PartColumn("<i>return</i>", 3)]
    rows = [
        PartRow(style, name, [0.91 - 0.1 * at, 0.7 + 0.05 * at, None if at else 0.5])
        for at, (name, style) in enumerate(zip(NAMES, styles, strict=True))
    ]
    sections = [
        Section("recommended", "Recommended", "comparison/recommendation.jinja", [
            "bottleneck: eval_loss 0.212, worse by 0.012 (95 %: −0.004 to 0.031), which these rows cannot tell apart.",
            "If memory counts, take bottleneck: 858 MiB instead of 1.1 GiB, and no clear loss.",
            "10min of training each, as measured over 10 steps before (lora-r-16: 812 steps of 0.74 s).",
        ]),
        fronts_section(standings, facts, "evaluation loss"),
        Section("wrong", "The cost of being wrong", "charts.jinja", [
            interval_chart("wrong-intervals", f"Lost against {NAMES[0]}", lanes, lambda value: f"{value:.3g}", "95 %")
        ], "What it costs to take another one."),
        Section("classes", "By class", "comparison/row_parts.jinja",
                RowPartsTable.of("By class", columns, rows, lambda value: f"{value:.2f}", True), "F1 of each class."),
    ]  # fmt: skip
    told = f"{NAMES[0]} is best: eval_loss 0.2 (95 %: 0.18 to 0.22)."
    return render_comparison_html(sibling_runs(), [each for each in sections if each], told, styles[:3])
