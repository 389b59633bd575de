"""Which process this is, by what torchrun and SLURM write into the environment."""

import pytest

from beitkit.errors import UserError
from beitkit.train.machine.launch import Rank, first_host, rank_from_environment

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "gpu01",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RESTART_COUNT": "2",
}
SLURM = {
    "SLURM_STEP_ID": "3",
    "SLURM_JOB_ID": "12345678",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODELIST": "gpu[03-04]",
}


def without(environment: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key != name}


def test_without_a_launcher_there_is_one_process() -> None:
    assert rank_from_environment({}) == rank_from_environment({"WORLD_SIZE": "1", "RANK": "0"}) == Rank(rank=0, world_size=1)


def test_torchrun() -> None:
    assert rank_from_environment(TORCHRUN) == Rank(
        rank=5, local_rank=1, world_size=8, address="gpu01", port=29500, is_meeting_served=True, attempt=2
    )


def test_srun() -> None:
    here = rank_from_environment(SLURM)
    assert (here.rank, here.local_rank, here.world_size, here.address) == (9, 1, 16, "gpu03")
    assert not here.is_meeting_served
    assert here.port == rank_from_environment(SLURM | {"SLURM_PROCID": "0"}).port
    assert 1024 < here.port < 32768
    assert rank_from_environment(SLURM | {"MASTER_ADDR": "head", "MASTER_PORT": "4000"}).address == "head"
    assert rank_from_environment(SLURM | {"MASTER_ADDR": "head", "MASTER_PORT": "4000"}).port == 4000


def test_a_batch_script_and_a_step_of_one_task_are_one_process() -> None:
    assert rank_from_environment(without(SLURM, "SLURM_STEP_ID")).world_size == 1
    assert rank_from_environment(SLURM | {"SLURM_NTASKS": "1"}).world_size == 1


def test_torchrun_inside_a_slurm_step_decides() -> None:
    assert rank_from_environment(SLURM | TORCHRUN) == rank_from_environment(TORCHRUN)
    assert rank_from_environment(SLURM | {"WORLD_SIZE": "1", "RANK": "0"}).world_size == 1


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_what_torchrun_should_have_set(name: str) -> None:
    with pytest.raises(UserError, match=f"WORLD_SIZE asks for 8 processes, but the environment variable {name} is not set"):
        rank_from_environment(without(TORCHRUN, name))


def test_what_slurm_should_have_set() -> None:
    with pytest.raises(UserError, match="SLURM_NTASKS asks for 16 processes, but the environment variable SLURM_PROCID is not"):
        rank_from_environment(without(SLURM, "SLURM_PROCID"))


def test_values_that_cannot_be() -> None:
    with pytest.raises(UserError, match="no process 8 of 8, counted from 0: RANK and WORLD_SIZE contradict each other"):
        rank_from_environment(TORCHRUN | {"RANK": "8"})
    for wrong in ("many", "-2", ""):
        with pytest.raises(UserError, match="WORLD_SIZE must be a whole number, got"):
            rank_from_environment(TORCHRUN | {"WORLD_SIZE": wrong})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu7,gpu8", "gpu7"),
        ("gpu[03-05,7],cpu1", "gpu03"),
        ("gpu[7,09-11]", "gpu7"),
        ("rack[1-2]node[004-010]-ib,x", "rack1node004-ib"),
    ],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_the_shell_of_salloc_is_one_process() -> None:
    """It is a step of one task in a job of four."""
    shell = SLURM | {"SLURM_STEP_ID": "4294967290", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    assert rank_from_environment(shell) == Rank()
    inside = rank_from_environment(shell | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"})
    assert (inside.rank, inside.world_size) == (1, 2)
    with pytest.raises(UserError, match="no process 2 of 2, counted from 0: SLURM_PROCID and SLURM_STEP_NUM_TASKS contradict"):
        rank_from_environment(shell | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "2"})
    with pytest.raises(UserError, match="SLURM_STEP_NUM_TASKS asks for 2 processes, but the environment variable SLURM_LOCALID"):
        rank_from_environment(without(shell | {"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_LOCALID"))
