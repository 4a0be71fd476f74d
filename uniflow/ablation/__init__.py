"""Ablations: a YAML file -> runs of `uniflow fit` and `uniflow test` -> tables, plots and images."""
