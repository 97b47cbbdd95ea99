"""Names of what a run folder and a bench folder hold, besides what the recorder writes."""

SCENARIO = "scenario.toml"
SCHEDULE = "schedule.json"
TOPOLOGY = "topology.json"  # who hears whom, of a run without a server
CLIENTS = "clients.json"  # every client's model, and its number of training samples of each class
STUDY = "study.json"  # what a bench has found, for whoever makes tables, figures or a page of it anew
BENCH = "bench.toml"  # the bench file that a bench folder is of
CELLS = "cells.csv"
TUNE = "tune.toml"  # the search that a folder of trials is of
REPORT = "report.html"
DEPLOYMENT = "deployment.json"  # there if deployed nodes run it, which keep what their clients have learned
