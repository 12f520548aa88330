"""Reads run folders: metrics to tables, charts and pages. Needs no GPU, no engine and no network."""
