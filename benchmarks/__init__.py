"""Benchmarks of the project, each a command: `python -m benchmarks.NAME`, started at the root of the repository."""
