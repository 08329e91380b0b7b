"""Arithmetic below all astronomy: threads, planes, transforms, convolution, statistics."""
