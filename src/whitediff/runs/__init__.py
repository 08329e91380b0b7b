"""From files to files: what commands, batches and pipelines run."""
