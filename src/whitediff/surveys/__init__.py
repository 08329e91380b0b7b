"""Many pairs: manifests, batches on Dask, and Rubin's Butler."""
