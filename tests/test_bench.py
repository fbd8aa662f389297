"""bench.py: its rows name what the scripts take, and a whole run's images are shared out over the levels."""
import importlib
import json

import bench
import pytest

import common


@pytest.mark.parametrize("command", [*bench.ROWS.values(), *bench.REPORT])
def test_rows_parse(command):
    script, *flags = command.replace("--stage 2", "--stage 1").split()
    args = importlib.import_module(script).parse_args(flags)
    assert args.method == script


@pytest.mark.parametrize("skipped", [0, 500])
def test_levels_share_the_images(skipped):
    growth = common.Growth([(4, 4), (8, 8), (16, 16), (32, 32)], [4] * 4, [0.1] * 4, first=1, part=500, skipped=skipped)
    spans = [bench.span(growth, level, kimg=5) for level in (1, 2, 3)]
    assert spans[0] == (0, 0, 1000 - skipped)
    assert spans[1] == (1000 - skipped, 1500 - skipped, 2000 - skipped)
    assert spans[2] == (2000 - skipped, 2500 - skipped, 5000)
    for level, (begin, stable, end) in zip((1, 2, 3), spans, strict=True):
        assert growth.at(stable)[:2] == growth.at(end - 1)[:2] == (level, 1.0)
        assert growth.at(begin)[1] == (1.0 if level == 1 else 0.0)


@pytest.fixture
def measured(script):
    def run(command, level):
        done = script("tests/bench.py", "--one", command, "--level", level, "--rounds", 1, "--device", "cpu")
        return json.loads(done.stdout.splitlines()[-1])
    return run


def test_operations_are_counted(measured):
    """An autoencoder of 784 - 64 - 64 - 10 and back: a layer has a product forward and two backward, the first one."""
    row = measured("faae --objective ae-l2 --data mnist --width 16 --nz 10 --batch 4", -1)
    weights = 784 * 64 + 64 * 64 + 64 * 10
    assert row["gflop"] * 1e9 == 2 * 4 * (3 * 2 * weights - 784 * 64)
    assert row["step_s"] > 0
    assert row["batch"] == 4
    assert row["images"] == 1000 * row["kimg"]


def test_a_level_is_measured(measured):
    row = measured("alae --data ffhq --resolution 16 --width 256 --batch 4 --kimg 1", 1)
    assert (row["px"], row["levels"], row["first"], row["source"]) == (8, 3, 0, "given")
    assert row["images"] == pytest.approx(1000 * 2 / 8)
