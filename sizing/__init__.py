"""The physics: memory, speed and queueing of a language model on hardware. Pure functions and data, no clock."""
