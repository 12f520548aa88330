"""A run on the hosts of a Ray cluster. Nothing here is imported without `--cluster`."""
