"""Butler formatters of whitediff's objects, in the formats of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lsst.daf.butler import DatasetProvenance, FormatterV2
from lsst.resources import ResourcePath

from .. import __version__, formats
from ..exposures.boxes import Box
from ..exposures.foreign import box_of
from ..formats.catalogs import read_catalog, write_catalog
from ..formats.files import opened
from ..formats.headers import pixel_origin
from .storage import exposure_component, solution_component

if TYPE_CHECKING:
    from astropy.table import QTable

__all__ = ["CatalogFormatter", "ExposureFormatter", "SolutionFormatter"]

type Cards = dict[str, tuple[Any, str]]

_NO_PIXELS = ("psf", "kernel")


class _OwnFormatter(FormatterV2):
    """Formatter that keeps the provenance of a dataset until it is written."""

    can_read_from_local_file: ClassVar[bool] = True
    butler_provenance: DatasetProvenance | None = None

    def add_provenance(
        self, in_memory_dataset: Any, /, *, provenance: DatasetProvenance | None = None
    ) -> Any:
        """Keep the provenance; the dataset is not changed.

        Parameters
        ----------
        in_memory_dataset
            Dataset.
        provenance
            Quantum and inputs from which it was made.

        Returns
        -------
        dataset
            The given dataset.
        """
        self.butler_provenance = provenance
        return in_memory_dataset

    def _cards(self) -> Cards:
        """Cards that identify the dataset of a file and the datasets that it was made from."""
        ref = self.dataset_ref
        cards: Cards = {
            "WDVERS": (__version__, "version of whitediff"),
            "WDBUTID": (str(ref.id), ""),
            "WDBUTTYP": (ref.datasetType.name, "dataset type"),
            "WDBUTRUN": (ref.run, "run"),
        }
        provenance = self.butler_provenance
        if provenance is not None:
            if provenance.quantum_id is not None:
                cards["WDBUTQID"] = (str(provenance.quantum_id), "")
            made_of = [
                f"{source.datasetType.name if source.datasetType else '?'} {source.id}"
                for source in provenance.inputs
            ]
            cards["WDBUTIN"] = ("; ".join(made_of), "")
        return cards


class ExposureFormatter(_OwnFormatter):
    """Formatter of exposures: reads all formats of the command line, writes whitediff's own."""

    default_extension: ClassVar[str] = ".fits"
    supported_extensions: ClassVar[frozenset[str]] = frozenset(
        {".fits", ".fit", ".fts", ".fits.gz", ".fits.fz", ".fit.gz", ".fits.bz2", ".fits.xz"}
    )
    supported_write_parameters: ClassVar[frozenset[str]] = frozenset({"compress"})

    def write_local_file(self, in_memory_dataset: Any, uri: ResourcePath) -> None:
        """Write an exposure.

        Parameters
        ----------
        in_memory_dataset
            `whitediff.Exposure`.
        uri
            File.
        """
        formats.write_exposure(
            in_memory_dataset,
            uri.ospath,
            overwrite=True,
            compress=bool(self.write_parameters.get("compress", False)),
            provenance=self._cards() | {"WDTASK": ("pipeline task", "made by")},
        )

    def read_from_local_file(
        self, path: str, component: str | None = None, expected_size: int = -1
    ) -> object:
        """Read an exposure, or a cut-out or component of it.

        Parameters
        ----------
        path
            File.
        component
            Name of a component; None for the exposure.
        expected_size
            Not used.

        Returns
        -------
        dataset
            `whitediff.Exposure` or component.
        """
        part = (self.file_descriptor.parameters or {}).get("bbox")
        box = None if part is None else box_of(part)
        if component in _NO_PIXELS and box is None:
            box = _one_pixel(path)
        exposure = formats.read_exposure(path, box=box)
        return exposure if component is None else exposure_component(exposure, component)


def _one_pixel(path: str) -> Box | None:
    """Box of one pixel, to read PSF and kernel without the planes; None if not an archive."""
    with opened(Path(path), checksums=False) as hdus:
        if not {"IMAGE", "MASK", "VARIANCE", "JSON"} <= {hdu.name for hdu in hdus}:
            return None
        start = pixel_origin(hdus["IMAGE"].header, path)
    return Box.from_shape((1, 1), start=start)


class SolutionFormatter(_OwnFormatter):
    """Formatter of solutions: files for ``whitediff subtract --kernel``."""

    default_extension: ClassVar[str] = ".fits"

    def write_local_file(self, in_memory_dataset: Any, uri: ResourcePath) -> None:
        """Write a solution.

        Parameters
        ----------
        in_memory_dataset
            `whitediff.subtraction.solution.Solution`.
        uri
            File.
        """
        formats.write_solution(
            in_memory_dataset, uri.ospath, overwrite=True, provenance=self._cards()
        )

    def read_from_local_file(
        self, path: str, component: str | None = None, expected_size: int = -1
    ) -> object:
        """Read a solution or a component of it.

        Parameters
        ----------
        path
            File.
        component
            Name of a component; None for the solution.
        expected_size
            Not used.

        Returns
        -------
        dataset
            Solution or component.
        """
        solution = formats.read_solution(path)
        return solution if component is None else solution_component(solution, component)


class CatalogFormatter(_OwnFormatter):
    """Formatter of catalogues with units and descriptions, as Parquet."""

    default_extension: ClassVar[str] = ".parquet"

    def write_local_file(self, in_memory_dataset: Any, uri: ResourcePath) -> None:
        """Write a catalogue.

        Parameters
        ----------
        in_memory_dataset
            `astropy.table.QTable`.
        uri
            File.
        """
        write_catalog(in_memory_dataset, uri.ospath, overwrite=True)

    def read_from_local_file(
        self, path: str, component: str | None = None, expected_size: int = -1
    ) -> QTable:
        """Read a catalogue.

        Parameters
        ----------
        path
            File.
        component
            Not used: catalogues have no components.
        expected_size
            Not used.

        Returns
        -------
        dataset
            `astropy.table.QTable`.
        """
        return read_catalog(path)
