"""The project's instruments, each of them a command: `python -m benchmarks.NAME`, started at the root of the repository."""
