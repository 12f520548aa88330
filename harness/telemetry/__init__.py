"""Sampling of host, processes, GPUs and servers while a run goes on. One file a source; `sampler.py` drives them."""
