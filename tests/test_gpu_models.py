"""The model folders of the GPU benchmark: the published sizes, and a tokenizer in which each word is one token."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from harness.tinymodels import VOCAB_WORDS
from harness.words import WORDS
from tests.benchmarks.gpu.campaign import estimate, rate_for, with_rate
from tests.benchmarks.gpu.models import CONFIGS, FIRST_SPECIAL, VOCABULARY, make_all, parameters

SCENARIOS = Path(__file__).parent / "benchmarks" / "gpu"


@pytest.mark.parametrize(
    ("name", "count"),
    [("llama-3.1-8b", 8_030_261_248), ("llama-3.2-1b", 1_235_814_400),
     ("llama-3.1-70b", 70_553_706_496),
     ("llama-13b", 13_015_864_320 + 2 * 5120 * (VOCABULARY - 32_000)),
     ("llama-30b", 32_528_943_616 + 2 * 6656 * (VOCABULARY - 32_000))],
)  # fmt: skip
def test_shapes_have_the_published_number_of_parameters(name: str, count: int) -> None:
    assert parameters(CONFIGS[name]) == count


def test_every_word_is_one_token_of_a_full_vocabulary(tmp_path: Path) -> None:
    folders = make_all(tmp_path)
    assert [path.name for path in folders] == [*CONFIGS, "llama-3.1-8b-fp8", "llama-3.1-70b-fp8"]
    tokenizer = Tokenizer.from_file(str(folders[0] / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == VOCABULARY == CONFIGS["llama-3.1-8b"]["vocab_size"]
    words = [*WORDS, *VOCAB_WORDS]
    assert len(tokenizer.encode("".join(f" {word}" for word in words)).ids) == len(words)
    assert tokenizer.decode([40_000]).strip().isalpha()
    assert tokenizer.decode([FIRST_SPECIAL], skip_special_tokens=True) == ""


def test_the_open_loop_is_corrected_by_what_an_earlier_run_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (SCENARIOS / "8b-fp8.yaml").read_text("utf-8")
    assert estimate(SCENARIOS / "8b-fp8.yaml") == 40.0
    assert "rate: 33.3/s" in with_rate(text, 33.333)
    assert with_rate(text, None) == text
    assert rate_for("8b-fp8", tmp_path) is None  # nothing was measured yet
    monkeypatch.setattr("tests.benchmarks.gpu.campaign.saturation_rps", lambda folder: 50.0)
    assert rate_for("1b-bf16", tmp_path) is None  # the first of its kind
    assert rate_for("1b-bf16-util06", tmp_path) == pytest.approx(35.0)
    assert rate_for("8b-fp8", tmp_path) == pytest.approx(35.0 * 40 / 27)
