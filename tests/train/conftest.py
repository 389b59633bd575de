"""Starting a program as two processes of one run."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

Launch = Callable[[Sequence[str]], list[tuple[int, str]]]


@pytest.fixture(scope="session")
def launch_two() -> Launch:
    """Run `python ARGUMENTS` twice, with the variables of torchrun; exit codes and what was said on stderr."""

    def launch(arguments: Sequence[str]) -> list[tuple[int, str]]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen(
                [sys.executable, *arguments],
                env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in ("0", "1")
        ]
        said = [process.communicate(timeout=200)[1] for process in processes]
        return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]

    return launch
