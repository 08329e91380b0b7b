"""Generic instrument, for cameras that Rubin's stack does not know."""

from __future__ import annotations

from typing import NoReturn

from lsst.daf.butler import Registry
from lsst.pipe.base import Instrument

__all__ = ["GenericInstrument"]


class GenericInstrument(Instrument):
    """Camera of which only the name is known.

    Parameters
    ----------
    collection_prefix
        As for `lsst.pipe.base.Instrument`.
    """

    @classmethod
    def getName(cls) -> str:
        """Default name of the instrument.

        Returns
        -------
        name
            Name under which it is registered if no other is given.
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

    def getRawFormatter(self, dataId: object) -> NoReturn:
        """Refuse to give a formatter of raw exposures: there are none.

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
