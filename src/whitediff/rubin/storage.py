"""Butler storage classes of whitediff: configuration, and components of objects in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from lsst.daf.butler import Config, StorageClassDelegate, StorageClassFactory
from lsst.resources import ResourcePath

from ..exposures.foreign import box_of
from ..exposures.model import Exposure
from ..formats.archive.convert import (
    lsst_box,
    lsst_kernel,
    lsst_mask,
    lsst_psf,
    masked_image,
    sky_projection,
)
from ..subtraction.solution import Solution

if TYPE_CHECKING:
    from ..exposures.foreign import Bounds

__all__ = [
    "STORAGE_CLASSES",
    "ExposureDelegate",
    "SolutionDelegate",
    "configuration",
    "register_storage_classes",
]

STORAGE_CLASSES = ("WhitediffExposure", "WhitediffSolution", "WhitediffCatalog")


def configuration() -> Config:
    """Configuration that a repository needs to store whitediff's objects.

    Returns
    -------
    config
        Storage classes and formatters.
    """
    return Config(ResourcePath(str(files("whitediff.rubin") / "config" / "butler.yaml")))


def register_storage_classes() -> None:
    """Make whitediff's storage classes known in this process, for any repository."""
    StorageClassFactory().addFromConfig(configuration())


class ExposureDelegate(StorageClassDelegate):
    """Components and cut-outs of an exposure."""

    def getComponent(self, composite: Exposure, componentName: str) -> object:
        """Take a component.

        Parameters
        ----------
        composite
            Exposure.
        componentName
            Name of the component in the storage class.

        Returns
        -------
        component
            Object of lsst.images; None if the exposure has no such component.
        """
        return exposure_component(composite, componentName)

    def handleParameters(
        self, inMemoryDataset: Exposure, parameters: Mapping[str, Bounds] | None = None
    ) -> Exposure:
        """Cut out a part of an exposure.

        Parameters
        ----------
        inMemoryDataset
            Exposure.
        parameters
            ``bbox``: box of the pixels to keep.

        Returns
        -------
        exposure
            The part; the whole exposure without a box.
        """
        box = (parameters or {}).get("bbox")
        return inMemoryDataset if box is None else inMemoryDataset.cutout(box_of(box))


class SolutionDelegate(StorageClassDelegate):
    """Components of a solution."""

    def getComponent(self, composite: Solution, componentName: str) -> object:
        """Take a component.

        Parameters
        ----------
        composite
            Solution.
        componentName
            ``kernel``, or ``psf`` of the exposure that was not convolved.

        Returns
        -------
        component
            Object of lsst.images; None if the solution has no PSF.
        """
        return solution_component(composite, componentName)


_OF_EXPOSURE: dict[str, Callable[[Exposure], Any]] = {
    "masked_image": masked_image,
    "image": lambda exposure: masked_image(exposure).image,
    "mask": lambda exposure: lsst_mask(exposure.mask, exposure.bbox),
    "variance": lambda exposure: masked_image(exposure).variance,
    "psf": lambda exposure: None if exposure.psf is None else lsst_psf(exposure.psf),
    "kernel": lambda exposure: None if exposure.kernel is None else lsst_kernel(exposure.kernel),
    "bbox": lambda exposure: lsst_box(exposure.bbox),
    "sky_projection": lambda exposure: sky_projection(exposure.header, exposure.bbox),
}


def exposure_component(exposure: Exposure, name: str) -> object:
    """Component of an exposure.

    Parameters
    ----------
    exposure
        Exposure.
    name
        Name of the component in the storage class.

    Returns
    -------
    component
        Object of lsst.images; None if the exposure has no such component.

    Raises
    ------
    AttributeError
        If the storage class has no component of this name.
    """
    if name not in _OF_EXPOSURE:
        raise AttributeError(
            f"An exposure has no component {name!r}; it has {', '.join(_OF_EXPOSURE)}."
        )
    return _OF_EXPOSURE[name](exposure)


def solution_component(solution: Solution, name: str) -> object:
    """Component of a solution.

    Parameters
    ----------
    solution
        Solution.
    name
        ``kernel`` or ``psf``.

    Returns
    -------
    component
        Object of lsst.images; None if the solution has no PSF.

    Raises
    ------
    AttributeError
        If the name is neither.
    """
    if name not in ("kernel", "psf"):
        raise AttributeError(f"A solution has no component {name!r}; it has kernel, psf.")
    if name == "kernel":
        return lsst_kernel(solution.kernel)
    return None if solution.psf is None else lsst_psf(solution.psf)
