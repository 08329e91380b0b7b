"""Many pairs: manifests and batches on Dask."""
