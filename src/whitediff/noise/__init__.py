"""Noise of an image: its size and correlation, and the pixels that hold sources instead."""
