"""An instrument for those who have none in Rubin's stack."""

from __future__ import annotations

from typing import Any

from lsst.daf.butler import Registry
from lsst.pipe.base import Instrument

__all__ = ["GenericInstrument"]


class GenericInstrument(Instrument):
    """A camera of which nothing is known but its name.

    Parameters
    ----------
    collection_prefix
        As for `lsst.pipe.base.Instrument`.
    """

    @classmethod
    def getName(cls) -> str:
        """Name under which it is registered, unless another was given.

        Returns
        -------
        name
            Name.
        """
        return "Generic"

    def register(self, registry: Registry, *, update: bool = False) -> None:
        """Put the instrument into a registry.

        Parameters
        ----------
        registry
            Registry.
        update
            Whether a record that differs is replaced.
        """
        register_instrument(registry, self.getName(), update=update)

    def getRawFormatter(self, dataId: Any) -> Any:
        """Formatter of raw exposures, which there are none of.

        Parameters
        ----------
        dataId
            Not used.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError("Pairs of processed images have no raw exposures.")


def register_instrument(registry: Registry, name: str, *, update: bool = False) -> None:
    """Put an instrument of this class into a registry.

    Parameters
    ----------
    registry
        Registry.
    name
        Name of the instrument.
    update
        Whether a record that differs is replaced.
    """
    registry.syncDimensionData(
        "instrument",
        {
            "name": name,
            "class_name": f"{GenericInstrument.__module__}.{GenericInstrument.__name__}",
            "detector_max": 1 << 20,
            "visit_max": 1 << 62,
            "exposure_max": 1 << 62,
        },
        update=update,
    )
