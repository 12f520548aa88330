"""Prompts with a token of answer each, to read how many tokens the server counts in them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from harness.answers import Answer, read_answer
from harness.job import Job
from harness.pool import Pool
from harness.protocols import Prompt, path_and_body

AT_ONCE = 4


async def probe(job: Job, prompts: Sequence[Prompt]) -> list[int | None] | str:
    """What the server counts of each prompt, None where it does not count; a text where it refused one."""
    pool, few = Pool(job.target), asyncio.Semaphore(AT_ONCE)

    async def one(prompt: Prompt) -> Answer:
        path, body = path_and_body(job.target, job.workload.api, prompt, 1, job.workload.sampling)
        async with few:
            return read_answer(job.target.dialect, await pool.exchange(path, body, job.timeout_s, None))

    try:
        answers = await asyncio.gather(*map(one, prompts))
    finally:
        pool.close()
    for answer in answers:
        if answer.status != "ok" and answer.input_tokens is None:
            return answer.error or "no answer"
    return [answer.input_tokens for answer in answers]
