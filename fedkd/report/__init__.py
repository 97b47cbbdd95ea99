"""Tables and figures: what a reader sees of runs that are done."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "continual": ["outcome_of_rows"],
        "figures": ["draw_figures"],
        "latex": ["latex_table"],
        "metrics": ["CONTINUAL_METRICS", "metric"],
        "page.write": ["report_at_the_end", "write_report"],
        "run_summary": ["FINAL_ACCURACIES", "finish_run", "outcome_of"],
        "schedule": ["AWAY", "schedule_lines"],
        "statistics": ["Interval", "paired_difference"],
        "study": ["Curve", "Study", "StudyAxis", "StudyRun", "write_study"],
        "tables": ["csv_table", "csv_text", "markdown_table"],
        "topology": ["HEARS", "HERSELF", "graph_lines", "graph_title"],
    },
)
