"""The zoo of client models and how a scenario's client groups become models."""
