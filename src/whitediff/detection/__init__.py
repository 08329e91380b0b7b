"""Sources of a difference: peaks, fluxes, classes, catalogues."""
