"""Containers: images with mask, variance, PSF and header, and the objects that they hold."""
