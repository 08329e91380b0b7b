"""Files of the Rubin pipelines that are no lsst.images archives."""
