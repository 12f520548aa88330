"""How many tokens the server counts in prompts of so many words: two of them tell how to make exact lengths."""

from __future__ import annotations

from dataclasses import replace

from harness.answers import read_answer
from harness.job import Job
from harness.pool import Pool
from harness.protocols import path_and_body


async def probe(job: Job, word_counts: list[int]) -> list[tuple[int, int]] | str:
    """Send one prompt of each number of words and read how many tokens the server counted.

    Returns pairs of (words, tokens); none where the server does not count; a text where it refused.
    """
    pool = Pool(job.target)
    counts: list[tuple[int, int]] = []
    try:
        for number, words in enumerate(word_counts):
            plan = replace(job.plan, tokens_per_word=1.0, tokens_fixed=0.0)
            prompt = plan.prompt("probe", number, words)
            path, body = path_and_body(job.target, job.workload.api, prompt, 1, job.workload.sampling)
            answer = read_answer(job.target.dialect, await pool.exchange(path, body, job.timeout_s, None))
            if answer.status != "ok" and answer.input_tokens is None:
                return answer.error or "no answer"
            if answer.input_tokens is not None:
                counts.append((words, answer.input_tokens))
    finally:
        pool.close()
    return counts
