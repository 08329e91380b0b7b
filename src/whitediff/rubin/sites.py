"""Sites for BPS on Parsl that ctrl_bps_parsl lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lsst.ctrl.bps.parsl import SiteConfig
from lsst.ctrl.bps.parsl.configuration import get_bps_config_value
from parsl.executors import HighThroughputExecutor
from parsl.providers import CondorProvider

if TYPE_CHECKING:
    from lsst.ctrl.bps.parsl import ParslJob
    from parsl.executors.base import ParslExecutor

__all__ = ["HTCondor"]


class HTCondor(SiteConfig):
    """HTCondor pool whose machines can reach the submit machine and its file system.

    Parameters
    ----------
    *args, **kwargs
        As for `lsst.ctrl.bps.parsl.SiteConfig`.

    Notes
    -----
    Parsl submits pilots; each takes a slot and runs as many jobs side by side as the slot has
    cores.  Values under ``site.<computeSite>``: ``max_slots`` (most pilots),
    ``cores_per_slot``, ``mem_per_slot`` (GB), ``walltime`` (HH:MM:SS), ``requirements``
    (ClassAd expression), ``scheduler_options`` (lines for the submit file).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["resource_list"] = ["priority"]
        super().__init__(*args, **kwargs)

    def get_executors(self) -> list[ParslExecutor]:
        """Make the executor.

        Returns
        -------
        executors
            List of the one executor.
        """
        cores = get_bps_config_value(self.site, "cores_per_slot", int, 1)
        memory = get_bps_config_value(self.site, "mem_per_slot", int, required=True)
        provider = CondorProvider(
            nodes_per_block=1,
            cores_per_slot=cores,
            mem_per_slot=memory,
            init_blocks=1,
            min_blocks=0,
            max_blocks=get_bps_config_value(self.site, "max_slots", int, 1),
            walltime=get_bps_config_value(self.site, "walltime", str, "04:00:00"),
            requirements=get_bps_config_value(self.site, "requirements", str, ""),
            scheduler_options=get_bps_config_value(self.site, "scheduler_options", str, ""),
        )
        return [
            HighThroughputExecutor(
                "htcondor",
                provider=provider,
                max_workers_per_node=cores,
                mem_per_worker=memory / cores,
                address=self.get_address(),
            )
        ]

    def select_executor(self, job: ParslJob) -> str:
        """Choose the executor of a job.

        Parameters
        ----------
        job
            Job.

        Returns
        -------
        label
            Label of the only executor.
        """
        return "htcondor"
