"""Local training of a client: trainers of networks and estimators, streams of tasks, losses."""
