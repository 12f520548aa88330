"""The command line: thin, one short file per command; the only place that prints."""
