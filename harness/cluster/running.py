"""What a campaign does otherwise on a cluster: its load comes from other hosts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness import cores
from harness.cluster.load import described

if TYPE_CHECKING:
    from harness.cluster.connect import Cluster
    from harness.run import Campaign


@contextmanager
def load_of(campaign: Campaign, cluster: Cluster) -> Iterator[None]:
    """The load processes of all load hosts; run.json says which hosts, how well their clocks are known, and what was
    lost. Their telemetry goes to a journal of its own."""
    journal = campaign.folder.telemetry_journal()
    also = getattr(campaign.observer, "sample", None)

    def sample(row: Any) -> None:
        journal.add(row)
        if also is not None:
            also(row)
        if journal.due():
            journal.flush()

    def workers(cores_there: int) -> int:
        return cores.worker_count(campaign.scenario, cores_there)

    before = campaign.record.cluster
    try:
        names = {host["address"]: host["name"] for host in before.get("hosts", [])}
        with cluster.load(campaign.scenario, workers, campaign.origin_s, sample, campaign.warn, names) as load:
            here = {node.address for node in load.nodes}
            load.former = [host for host in before.get("hosts", []) if host["address"] not in here]
            load.clocks += before.get("clocks", [])
            load.gaps += before.get("gaps", [])
            campaign.load, campaign.workers = load, load.workers
            campaign.record.environment |= {"load_processes": load.workers, "load_cores": None}
            campaign.record.cluster = described(load)
            try:
                yield
            finally:
                campaign.record.cluster = described(load)
    finally:
        journal.close()
