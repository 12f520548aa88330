"""Measures: from a scenario to records on disk. Imports `sizing` and nothing above itself."""
