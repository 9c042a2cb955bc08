"""Workers on Ray: actors that are started again when they die, and then do the job they were at again."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from typing import cast

from ..errors import UserError
from ..pipeline import Weights
from .jobs import Job
from .work import Outcome, Worker

RETRIES = 2
"""How often a job is done again whose worker died. A job that kills each of its workers is given up."""
OBJECT_STORE = 100 * 2**20  # bytes; only jobs and outcomes go through it, clips are files


def installed() -> bool:
    """Whether Ray is there."""
    return find_spec("ray") is not None


@contextlib.contextmanager
def connected(address: str | None, cpus: int | None = None) -> Iterator[list[dict[str, float]]]:
    """Ray inside the `with`: the cluster at an address, else this machine; the resources of each node.

    `cpus`: how many this machine is taken to have; by default as many as it has.

    Raises:
        UserError: Ray is not installed, or no cluster answers.
    """
    if not installed():
        raise UserError("several workers need Ray, which is not installed: pip install 'uniavgen[cluster]'")
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options = (
        {} if address else {"num_cpus": cpus, "object_store_memory": OBJECT_STORE, "include_dashboard": False}
    )
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **options)
    except Exception as error:  # where its processes start too slowly, Ray raises no class of its own
        ray.shutdown()  # what had started already
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"no Ray cluster at {address or 'this machine'} ({reason}); see `ray status`"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray's own would end the process without a word
    try:
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


def room(nodes: list[dict[str, float]], on_gpu: bool, cores: int) -> int:
    """How many workers fit the nodes: one for each GPU, or for every so many cores."""
    if on_gpu:
        return sum(int(node.get("GPU", 0)) for node in nodes)
    return sum(int(node.get("CPU", 0)) // cores for node in nodes)


def make_all(jobs: list[Job], weights: Weights, workers: int, cores: int) -> Iterator[Outcome]:
    """Outcomes in the order in which the jobs end; inside of `connected`.

    A job that was with a worker that died is done again by the next one, at most `RETRIES` times. It comes
    last, with an error, if that was not enough.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util import ActorPool

    on_gpu = weights.device != "cpu"
    actor = ray.remote(Worker).options(
        num_cpus=cores,
        num_gpus=1 if on_gpu else 0,
        max_restarts=-1,
        max_task_retries=RETRIES,
    )
    pool = ActorPool([actor.remote(weights, 0 if on_gpu else cores) for _ in range(workers)])
    for job in jobs:
        pool.submit(lambda worker, job: worker.make.remote(job), job)
    missing, reason = {job.id for job in jobs}, ""
    while pool.has_next():
        try:
            outcome = cast(Outcome, pool.get_next_unordered())
        except RayError as error:
            reason = str(error).strip().splitlines()[-1][:200]
            continue
        missing.remove(outcome.job)
        yield outcome
    for job in jobs:
        if job.id in missing:
            error = f"its worker died, and those that tried again ({reason}); is there enough memory?"
            yield Outcome(job.id, error, 0.0, "")
