"""File names in run folders and bench folders, besides those of the recorder."""

SCENARIO_FILE = "scenario.toml"
SCHEDULE_FILE = "schedule.json"
TOPOLOGY = "topology.json"  # communication graph of a run without a server
CLIENTS_FILE = "clients.json"  # every client's model, and its training samples per class
STUDY_FILE = "study.json"  # results of a bench, for tables, figures and the page
BENCH_FILE = "bench.toml"  # bench file of a bench folder
CELLS_FILE = "cells.csv"
TUNE_FILE = "tune.toml"  # search file of a search folder
REPORT_FILE = "report.html"
DEPLOYMENT = "deployment.json"  # marks a run of deployed nodes, which keep their clients' states
