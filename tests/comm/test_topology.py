import pytest

from hpcps.comm import launcher, topology


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 1000003])
@pytest.mark.parametrize("parts", range(1, 10))
def test_chunks_cover_the_range_evenly(count, parts):
    bounds = topology.chunk_bounds(count, parts)
    sizes = [part.stop - part.start for part in topology.slices(bounds)]
    assert (bounds[0], bounds[-1], len(bounds)) == (0, count, parts + 1)
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    assert [topology.chunk(count, parts, i) for i in range(parts)] == [
        range(part.start, part.stop) for part in topology.slices(bounds)
    ]


@pytest.mark.parametrize("count", [256, 257, 1437, 60000])
@pytest.mark.parametrize(("batch", "parts"), [(256, 16), (100, 7), (5, 5), (64, 1)])
def test_every_part_has_samples_for_every_batch_of_an_epoch(count, batch, parts):
    shares = topology.chunk_bounds(batch, parts)
    blocks = topology.slices(topology.proportional_bounds(count, shares))
    steps = count // batch
    for block, share in zip(blocks, topology.slices(shares), strict=True):
        assert block.stop - block.start >= steps * (share.stop - share.start)
    assert blocks[-1].stop == count


def test_the_ring_closes():
    assert [topology.right(rank, 3) for rank in range(3)] == [1, 2, 0]
    assert [topology.left(topology.right(rank, 5), 5) for rank in range(5)] == list(range(5))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"}, (2, 4)),
        ({"PMI_RANK": "0", "PMI_SIZE": "3"}, (0, 3)),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "9"}, (1, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),  # in a batch script, outside of any srun
        ({"HPCPS_LAUNCHED_RANKS": "4"}, (0, 4)),
        ({"HPCPS_LAUNCHED_RANKS": "4", "PMI_RANK": "0", "PMI_SIZE": "1"}, (0, 4)),
        ({"PMI_RANK": "x", "PMI_SIZE": "3"}, None),
        ({"PMI_RANK": "5", "PMI_SIZE": "8", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, (5, 8)),
    ],
)
def test_the_launcher_is_known_by_its_variables(environment, expected):
    told = launcher.launched(environment)
    assert (told and (told.rank, told.size)) == expected


def test_sruns_own_pmi_is_sruns():
    environment = {"PMI_RANK": "1", "PMI_SIZE": "2", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}
    assert launcher.launched(environment) == launcher.Launched("srun", 1, 2)
