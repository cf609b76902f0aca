"""The word tokenizer of the embedded `tiny` CLIP: one id a word, vocabulary in tiny/vocabulary.txt."""

import re
from functools import lru_cache
from pathlib import Path

import torch

TINY = Path(__file__).parent / "tiny"
VOCABULARY_SIZE = 512  # of the model; ids that no word uses are spare
CONTEXT = 16
PAD, UNKNOWN, FIRST_WORD = 0, 1, 2
START, END = VOCABULARY_SIZE - 2, VOCABULARY_SIZE - 1  # END is the largest id: open_clip pools the text there


@lru_cache(maxsize=1)
def vocabulary() -> dict[str, int]:
    """Word -> id."""
    words = (TINY / "vocabulary.txt").read_text(encoding="utf-8").split()
    return {word: FIRST_WORD + index for index, word in enumerate(words)}


def tokenize(texts: str | list[str], context_length: int = CONTEXT) -> torch.Tensor:
    """Texts -> ids (n, context_length), int64: START, words in lower case, END, PAD; a long text is cut."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    ids = torch.full((len(texts), context_length), PAD)
    for row, text in zip(ids, texts, strict=True):
        words = [vocabulary().get(word, UNKNOWN) for word in re.findall(r"[a-z0-9]+", text.lower())]
        tokens = [START, *words[: context_length - 2], END]
        row[: len(tokens)] = torch.tensor(tokens)
    return ids
