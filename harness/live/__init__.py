"""Live figures of a run for Prometheus. Nothing here is imported without `--prometheus`."""
