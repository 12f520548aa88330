"""The workload part of a scenario: which prompts, how long, in which sessions, how tokens are picked.

Each kind is a class here, a line in `AnyWorkload`, and a source of prompts in `workloads`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from harness.datafiles import Conversation, Line, read_conversations, read_prompts
from harness.filepart import FilePart
from harness.lengths import Lengths, Pause, largest, smallest, typical
from harness.parts import ExistingFile, Part

SYNTHETIC = "synthetic"


class Sampling(Part):
    """How the model picks tokens; set explicitly on every engine, so that none uses its own default."""

    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0: no limit")
    seed: int | None = None
    stop: list[str] = []


class WorkloadBase(Part):
    """What all kinds have."""

    api: Literal["completions", "chat"] = "completions"
    tokenizer: ExistingFile | None = Field(None, description="a tokenizer.json; left out: sought beside the model")
    sampling: Sampling = Sampling()

    def many_turns(self) -> bool:
        """Whether a session can go on after its first answer."""
        return False

    def typical_output(self) -> int:
        """The tokens of a typical answer, as far as they are known before the run."""
        raise NotImplementedError

    def said(self) -> str:
        """What is sent, in a few words."""
        raise NotImplementedError


class SharedPrefix(Part):
    """A `share` of the requests starts with one of `prefixes` texts of exactly `tokens`; the rest is their own."""

    tokens: int = Field(ge=1)
    share: float = Field(1.0, gt=0, le=1)
    prefixes: int = Field(1, ge=1)


class Workload(WorkloadBase):
    """`synthetic`: prompts of an exact token length that share nothing unless `shared_prefix` says so.

    A session is of `turns` requests, each with `input_tokens` of new text, a `think_time` after the answer before.
    """

    kind: Literal["synthetic"] = "synthetic"
    input_tokens: Lengths = 512
    output_tokens: Lengths = 128
    shared_prefix: SharedPrefix | None = None
    turns: Lengths = 1
    think_time: Pause | None = None
    prompt: Literal["auto", "text", "token_ids"] = "auto"

    @model_validator(mode="after")
    def _fits_together(self) -> Workload:
        prefix, shortest = self.shared_prefix, smallest(self.input_tokens)
        if prefix is not None and prefix.tokens >= shortest:
            raise ValueError(
                f"`shared_prefix.tokens` ({prefix.tokens}) is a part of `input_tokens`: it must be smaller than the "
                f"shortest of them ({shortest})"
            )
        if self.think_time is not None and not self.many_turns():
            raise ValueError("`think_time` is between the turns of a session: give `turns` too")
        if self.prompt == "token_ids" and self.many_turns():
            raise ValueError("`prompt: token_ids` takes one turn: later ones hold answers, which come as text")
        if self.prompt == "token_ids" and self.api == "chat":
            raise ValueError("`prompt: token_ids` needs `api: completions`: the messages of a chat are text")
        return self

    def many_turns(self) -> bool:
        return largest(self.turns) > 1

    def typical_input(self) -> int:
        """The tokens of a typical first prompt."""
        return typical(self.input_tokens)

    def typical_output(self) -> int:
        return typical(self.output_tokens)

    def said(self) -> str:
        several = f", up to {largest(self.turns)} turns" if self.many_turns() else ""
        longest = (
            f" (the longest prompt has {self.largest_input():,})" if self.largest_input() > self.typical_input() else ""
        )
        return f"about {self.typical_input():,} tokens in and {self.typical_output():,} out{several}{longest}"

    def largest_input(self) -> int:
        """The tokens of the longest prompt that can come: the last one of a long session."""
        turns = largest(self.turns)
        return turns * largest(self.input_tokens) + (turns - 1) * largest(self.output_tokens)


class FileWorkload(WorkloadBase, FilePart):
    """What kinds that read a file have. It is gone through shuffled by the seed, or in its `order`, and again from its
    beginning when it is exhausted.

    `unique`: each session starts with a few words of its own, so that no prompt cache knows it when it comes again.
    """

    file: ExistingFile
    order: Literal["shuffled", "file"] = "shuffled"
    output_tokens: Lengths | None = Field(None, description="left out: as long as the file's own answers")
    unique: bool = True
    prompt: Literal["auto", "text"] = "auto"

    def typical_output(self) -> int:
        if self.output_tokens is not None:
            return typical(self.output_tokens)
        lengths = self.answer_lengths()
        return max(1, round(sum(lengths) / len(lengths))) if lengths else 1

    def answer_lengths(self) -> list[int]:
        """How long the file's answers are, in tokens where it says that, else in words."""
        raise NotImplementedError


class ShareGptWorkload(FileWorkload):
    """`sharegpt`: the conversations of a file, asked turn by turn (at most `turns`); the answers are the model's."""

    kind: Literal["sharegpt"]
    turns: int | None = Field(None, ge=1)
    think_time: Pause | None = None

    @model_validator(mode="after")
    def _readable(self) -> ShareGptWorkload:
        if self.output_tokens is None and not any(turn.answer for c in self.conversations() for turn in c.turns):
            raise ValueError(f"{self.file}: holds no answers: say how long answers are to be: `output_tokens`")
        return self

    def said(self) -> str:
        return f"{len(self.conversations()):,} conversations of {self.file}"

    def conversations(self) -> list[Conversation]:
        return read_conversations(self.path(), self.sha256 or "")

    def many_turns(self) -> bool:
        return self.turns != 1

    def answer_lengths(self) -> list[int]:
        return [len(turn.answer.split()) for c in self.conversations() for turn in c.turns if turn.answer is not None]


class Fields(Part):
    """What the fields of a JSONL file are called."""

    prompt: str = "prompt"
    messages: str = "messages"
    input_tokens: str = "input_tokens"
    output_tokens: str = "output_tokens"


class JsonlWorkload(FileWorkload):
    """`jsonl`: a request a line, its `prompt` a text, or its `messages` those of a chat."""

    kind: Literal["jsonl"]
    fields: Fields = Fields()

    @model_validator(mode="after")
    def _readable(self) -> JsonlWorkload:
        for number, line in enumerate(self.lines(), 1):
            if not isinstance(line.prompt, str) and self.api != "chat":
                raise ValueError(f"{self.file}: entry {number} has messages: they need `api: chat`")
            if self.output_tokens is None and line.output_tokens is None and line.answer is None:
                raise ValueError(
                    f"{self.file}: entry {number} has no `{self.fields.output_tokens}` and no answer: say how long "
                    "answers are to be: `output_tokens`"
                )
        return self

    def answer_lengths(self) -> list[int]:
        return [line.output_tokens or len((line.answer or "").split()) for line in self.lines()]

    def said(self) -> str:
        return f"{len(self.lines()):,} requests of {self.file}"

    def lines(self) -> list[Line]:
        names = (self.fields.prompt, self.fields.messages, self.fields.input_tokens, self.fields.output_tokens)
        return read_prompts(self.path(), self.sha256 or "", names)


WORKLOADS: dict[str, type[WorkloadBase]] = {
    SYNTHETIC: Workload,
    "sharegpt": ShareGptWorkload,
    "jsonl": JsonlWorkload,
}


def _kind(value: Any) -> Any:
    return value.get("kind", SYNTHETIC) if isinstance(value, dict) else getattr(value, "kind", SYNTHETIC)


AnyWorkload = Annotated[
    Annotated[Workload, Tag(SYNTHETIC)]
    | Annotated[ShareGptWorkload, Tag("sharegpt")]
    | Annotated[JsonlWorkload, Tag("jsonl")],
    Discriminator(_kind),
]
