"""Tables, figures and pages of runs and benches."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "continual": ["outcome_of_rows"],
        "figures": ["draw_figures"],
        "latex": ["latex_table"],
        "metrics": ["CONTINUAL_METRICS", "LISTED_METRICS", "OVER_CLIENTS", "TEST_SAMPLES", "find_metric"],
        "page.write": ["write_final_report", "write_report"],
        "run_summary": ["FINAL_ACCURACIES", "finish_run", "read_stream_outcome"],
        "schedule": ["ABSENT_SIGN", "schedule_lines"],
        "statistics": ["Interval", "paired_difference"],
        "study": ["Curve", "Study", "StudyAxis", "StudyRun", "write_study"],
        "tables": ["csv_table", "csv_text", "markdown_table"],
        "topology": ["LINK_SIGN", "SELF_SIGN", "graph_lines", "graph_title"],
    },
)
