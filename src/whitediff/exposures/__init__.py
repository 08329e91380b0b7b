"""Images with mask, variance, PSF and header, on the containers of lsst.images."""
