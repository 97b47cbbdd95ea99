"""Names of what a run folder and a bench folder hold, besides what the recorder writes."""

SCENARIO_FILE = "scenario.toml"
SCHEDULE_FILE = "schedule.json"
TOPOLOGY = "topology.json"  # who hears whom, of a run without a server
CLIENTS_FILE = "clients.json"  # every client's model, and its number of training samples of each class
STUDY_FILE = "study.json"  # what a bench has found, for whoever makes tables, figures or a page of it anew
BENCH_FILE = "bench.toml"  # the bench file that a bench folder is of
CELLS_FILE = "cells.csv"
TUNE_FILE = "tune.toml"  # the search that a folder of trials is of
REPORT_FILE = "report.html"
DEPLOYMENT = "deployment.json"  # there if deployed nodes run it, which keep what their clients have learned
