"""Tasks of srun are the ranks of one run; shells and single tasks are not."""

import pytest

from vidrobust.utils.slurm_ranks import adopt_slurm_ranks, first_node, port_of

# task 2 of `srun --nodes 2 --ntasks-per-node 2`
TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}


def _adopted(**changes):
    env = {key: value for key, value in (TASK | changes).items() if value is not None}
    before = dict(env)
    adopt_slurm_ranks(env)
    return {key: value for key, value in env.items() if before.get(key) != value}


def test_a_task_of_srun_becomes_a_rank():
    assert _adopted() == {
        "RANK": "2",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu07",  # where task 0 runs, not where srun was called
        "MASTER_PORT": str(port_of("4711.0")),
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_NUM_TASKS": None},  # the shell of sbatch, which has SLURM_NTASKS
        {"SLURM_STEP_ID": None},  # the shell of salloc
        {"SLURM_STEP_ID": "4294967290"},  # an interactive step
        {"SLURM_STEP_ID": "4294967291"},  # a batch step
        {"SLURM_STEP_ID": "interactive"},
        {"SLURM_PROCID": "4"},
        {"WORLD_SIZE": "1"},  # the user's wish: independent tasks
        {"RANK": "0"},
        {"TORCHELASTIC_RUN_ID": "x"},
    ],
)
def test_other_processes_stay_alone(changes):
    assert _adopted(**changes) == {}


def test_one_node_is_reached_without_its_name():
    assert _adopted(SLURM_STEP_NUM_NODES="1")["MASTER_ADDR"] == "127.0.0.1"


def test_addresses_that_the_user_sets_are_kept():
    adopted = _adopted(MASTER_ADDR="head", MASTER_PORT="5")
    assert "MASTER_ADDR" not in adopted and "MASTER_PORT" not in adopted


def test_jobs_and_their_steps_have_different_ports_below_those_of_clients():
    assert _adopted()["MASTER_PORT"] != _adopted(SLURM_STEP_ID="1")["MASTER_PORT"]
    ports = [port_of(f"{job}_{task}") for job in range(10) for task in range(10)]
    assert len(set(ports)) > 90 and min(ports) >= 10_000 and max(ports) < 30_000


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[07-09,12],cpu1", "gpu07"),
        ("gpu[3,5-6]", "gpu3"),
        ("rack1-gpu[1-2]-ib,x", "rack1-gpu1-ib"),
        ("", ""),
    ],
)
def test_the_first_node_of_a_list(nodes, first):
    assert first_node(nodes) == first
