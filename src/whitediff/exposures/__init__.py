"""Images with mask, variance, PSF and header, and what belongs to them: containers only."""
