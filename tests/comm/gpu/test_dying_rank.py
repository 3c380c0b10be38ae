"""A process that dies in the middle of its calls; without mpirun, which would end all of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu(min_arch=80)
SCRIPT = Path(__file__).parent / "dying_rank.py"
GONE = 7  # as in the script


@pytest.mark.parametrize("moment", ["before", "during"])
def test_the_other_rank_learns_it_and_goes_on(tmp_path, moment):
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(tmp_path / "store"), moment],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, GONE], "\n\n".join(outputs)
    assert "rank 0 has outlived rank 1" in outputs[0]
