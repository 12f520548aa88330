"""Prompts sent one after the other, a token of answer each, to read how many tokens the server counts in them."""

from __future__ import annotations

from collections.abc import Sequence

from harness.answers import read_answer
from harness.job import Job
from harness.pool import Pool
from harness.protocols import Prompt, path_and_body


async def probe(job: Job, prompts: Sequence[Prompt]) -> list[int | None] | str:
    """What the server counts of each prompt, None where it does not count; a text where it refused one."""
    pool = Pool(job.target)
    counts: list[int | None] = []
    try:
        for prompt in prompts:
            path, body = path_and_body(job.target, job.workload.api, prompt, 1, job.workload.sampling)
            answer = read_answer(job.target.dialect, await pool.exchange(path, body, job.timeout_s, None))
            if answer.status != "ok" and answer.input_tokens is None:
                return answer.error or "no answer"
            counts.append(answer.input_tokens)
    finally:
        pool.close()
    return counts
