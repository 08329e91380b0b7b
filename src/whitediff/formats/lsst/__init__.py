"""Files of the Rubin pipelines other than lsst.images archives."""
