"""Runs of the commands, from files to files; also for batches and pipelines."""
