"""The model itself: torch and transformers, imported only in here and only when the server starts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from harness.transformersserver.batches import Job, Step


def load(options: Any) -> HuggingFace:
    """The model on its device.

    Raises:
        ImportError: torch or transformers is missing.
        OSError, ValueError, RuntimeError: the folder or name is none, or the model does not fit.
    """
    import torch
    import transformers

    began_s = time.monotonic()
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, options.dtype)
    release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    # cuDNN's attention builds a plan for each new (batch, length): 50 ms a step, which no client should wait for.
    torch.backends.cuda.enable_cudnn_sdp(options.attn == "cudnn")
    attention = "sdpa" if options.attn == "cudnn" else options.attn
    how = {"dtype" if release >= (4, 56) else "torch_dtype": dtype, "attn_implementation": attention}
    print(f"transformersserver: transformers {transformers.__version__}, torch {torch.__version__}", flush=True)
    if options.load == "dummy":
        config = transformers.AutoConfig.from_pretrained(options.model)
        with torch.device(device):
            network = transformers.AutoModelForCausalLM.from_config(config, **how)
    else:
        network = transformers.AutoModelForCausalLM.from_pretrained(options.model, **how)
    network = network.to(device).eval()
    took_s = time.monotonic() - began_s
    print(f"transformersserver: {options.model} on {device} in {options.dtype}, {took_s:.1f} s", flush=True)
    return HuggingFace(network, _tokenizer(options.model), options, took_s)


def _tokenizer(model: str) -> Any:
    """The model's tokenizer; None where its folder has none (prompts as token ids alone are taken then)."""
    import transformers

    folder = Path(model)
    if folder.is_dir() and not any(folder.glob("tokenizer*")):
        return None
    return transformers.AutoTokenizer.from_pretrained(model)


class HuggingFace:
    """`generate` with a streamer and a stopping criterion of ours; see `batches.Model`."""

    def __init__(self, network: Any, tokenizer: Any, options: Any, load_s: float) -> None:
        import torch
        import transformers

        self.torch, self.network, self.tokenizer, self.options = torch, network, tokenizer, options
        self.load_s = load_s
        self.device = str(network.device)
        config = network.config
        ends = network.generation_config.eos_token_id
        ends = ends if ends is not None else config.eos_token_id
        self.eos = set(ends) if isinstance(ends, list | tuple) else {ends} - {None}
        self.context_tokens = int(getattr(config, "max_position_embeddings", 0) or 2**31)
        self.vocabulary = int(config.vocab_size)
        # What a model's own file says of sampling must not decide: each request says all of it.
        network.generation_config = transformers.GenerationConfig(pad_token_id=0)
        self.kv_bytes_per_token = self._kv_bytes_per_token()

    def encode(self, text: str) -> list[int]:
        if self.tokenizer is None:
            raise ValueError("this model folder has no tokenizer: send token ids")
        return [int(token) for token in self.tokenizer(text)["input_ids"]]

    def decode(self, ids: list[int]) -> str:
        if self.tokenizer is None:
            return ""
        fast = getattr(self.tokenizer, "backend_tokenizer", self.tokenizer)  # three times as quick, where there is one
        return str(fast.decode(ids, skip_special_tokens=True))

    def generate(self, jobs: list[Job], step: Step) -> None:
        torch = self.torch
        longest = max(len(job.prompt) for job in jobs)
        padding = [longest - len(job.prompt) for job in jobs]
        ids = torch.tensor([[0] * pad + job.prompt for job, pad in zip(jobs, padding, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * len(job.prompt) for job, pad in zip(jobs, padding, strict=True)])
        streamer = _Streamer(step)
        with torch.inference_mode():
            self.network.generate(
                ids.to(self.device),
                attention_mask=mask.to(self.device),
                generation_config=self._generation_config(jobs),
                streamer=streamer,
                stopping_criteria=self._stopping(streamer),
            )

    def _generation_config(self, jobs: list[Job]) -> Any:
        import transformers

        temperature, top_p, top_k, seed = jobs[0].sampling
        how: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            how = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": top_k}
            if seed is not None:
                self.torch.manual_seed(int(seed))
        most = max(job.max_tokens for job in jobs)
        return transformers.GenerationConfig(max_new_tokens=most, pad_token_id=0, use_cache=True, **how)

    def _stopping(self, streamer: _Streamer) -> Any:
        """Ends a batch as soon as every row is done with. No end-of-text token ends it: rows differ in that."""
        import transformers

        torch, device = self.torch, self.device

        class AllDone(transformers.StoppingCriteria):  # type: ignore[misc]
            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
                return torch.full((input_ids.shape[0],), streamer.all_done, device=device, dtype=torch.bool)

        return transformers.StoppingCriteriaList([AllDone()])

    def _kv_bytes_per_token(self) -> float:
        """Measured: what the cache of one forward pass over 16 tokens holds."""
        torch = self.torch
        with torch.inference_mode():
            ids = torch.ones((1, 16), dtype=torch.long, device=self.device)
            cache = self.network(ids, use_cache=True).past_key_values
        layers = [(layer.keys, layer.values) for layer in cache.layers] if hasattr(cache, "layers") else list(cache)
        return float(sum(part.numel() * part.element_size() for layer in layers for part in layer[:2])) / 16

    def facts(self) -> list[tuple[str, Any, str, str]]:
        """Name, value, unit and source of what this process knows of itself."""
        import transformers

        network, options, torch = self.network, self.options, self.torch
        held = sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))
        name = torch.cuda.get_device_name() if self.device.startswith("cuda") else "cpu"
        return [
            ("version", transformers.__version__, "", "transformers"),
            ("torch_version", torch.__version__, "", "torch"),
            ("device", name, "", "torch"),
            ("weights_bytes", held, "bytes", "parameters and buffers"),
            ("weights_load_s", self.load_s, "s", "the server"),
            ("kv_bytes_per_token", self.kv_bytes_per_token, "bytes", "the cache of 16 tokens"),
            ("context_tokens", self.context_tokens, "tok", "config.json"),
            ("max_concurrency", options.batch, "requests", "batch"),
            ("attention_backend", options.attn, "", "transformers"),
        ]

    def memory(self) -> dict[str, float]:
        """torch's own account of the GPU; empty on a CPU, where the process's memory tells."""
        if not self.device.startswith("cuda"):
            return {}
        cuda = self.torch.cuda
        return {
            "memory_allocated_bytes": cuda.memory_allocated(),
            "memory_reserved_bytes": cuda.memory_reserved(),
            "memory_peak_bytes": cuda.max_memory_allocated(),
        }


class _Streamer:
    """What `generate` hands its tokens to: the prompt first, then each step's, on the CPU."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.prompt_seen = False
        self.all_done = False

    def put(self, value: Any) -> None:
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        self.all_done = all(self.step(value.tolist()))

    def end(self) -> None:
        pass
