"""The baseline engine's server: Hugging Face `generate` behind OpenAI's streaming completions, batch after batch.

What people compare with when they say "traditional" inference: no continuous batching, no paging. It runs in an
interpreter that has torch and transformers and need not have anything of ours, so it uses the standard library else.
"""
