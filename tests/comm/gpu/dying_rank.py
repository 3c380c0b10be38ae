"""One of two ranks of a torch group, of which rank 1 ends without a word: ``python dying_rank.py RANK FILE MOMENT``.

MOMENT is "before" or "during": whether rank 1 is gone when rank 0 makes the call that it misses, or that call waits already.
"""

import datetime
import os
import sys
import time

import torch
import torch.distributed as dist

from warploom.comm import Communicator, all_reduce
from warploom.core.errors import CommunicationError

TIMEOUT = 3.0
GONE = 7  # exit status of rank 1
_UNTIL_GONE = 1.0  # seconds


def calls(comm, number):
    """All-reduces over peer memory, alternately by both kernels."""
    x = torch.full((4096,), comm.rank + 1.0, device=comm.device)
    for call in range(number):
        assert all_reduce(x, comm, backend=("oneshot", "twoshot")[call % 2]).eq(3).all()
    torch.cuda.synchronize()
    comm.check()


def outlive(comm, moment):
    """Rank 0: learn of rank 1's end in time, and be able to go on."""
    if moment == "before":
        time.sleep(2 * _UNTIL_GONE)
    x = torch.ones(4096, device=comm.device)
    start = time.monotonic()
    out = all_reduce(x, comm, backend="oneshot")
    torch.cuda.synchronize()
    took = time.monotonic() - start
    assert TIMEOUT - 0.5 < took < TIMEOUT + 5, f"took {took:.1f} s"
    reports = []
    for learn in (comm.check, lambda: all_reduce(x, comm, backend="twoshot")):
        try:
            learn()
        except CommunicationError as error:
            reports.append(str(error))
    expected = (
        f"rank 0: all_reduce (oneshot), call 7 over peer memory: waited for data of rank 1 (stage 0) for {TIMEOUT:g} s."
    )
    assert len(reports) == 2, reports
    assert all(report.startswith(expected) for report in reports), reports
    assert out.isnan().all()
    assert x.sum().item() == 4096, "the GPU works on"
    comm.close()
    print("rank 0 has outlived rank 1")


def main():
    rank, path, moment = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.cuda.set_device(rank % torch.cuda.device_count())
    device = torch.device("cuda", torch.cuda.current_device())
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", store=dist.FileStore(path, 2), rank=rank, world_size=2, timeout=limit)
    with Communicator.from_torch(dist.group.WORLD, device=device, timeout=60.0) as patient:
        calls(patient, 2)  # kernels compile where there is time
    comm = Communicator.from_torch(dist.group.WORLD, device=device, timeout=TIMEOUT)
    assert comm.peer_workspace is not None, comm.why_no_peer_kernels
    calls(comm, 6)
    comm.barrier()
    if rank == 0:
        outlive(comm, moment)
        return
    if moment == "during":
        time.sleep(_UNTIL_GONE)
    os._exit(GONE)


if __name__ == "__main__":
    main()
