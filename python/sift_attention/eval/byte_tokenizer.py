"""A tokenizer for byte models without one, for programs that take text rather than tokens."""

from __future__ import annotations

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .tokens import BOS, KEY, QRY, SEP, decode


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """The tokens of `tokens.encode`, after `BOS`: UTF-8 bytes, and marks where text spells them.

    `<bos>` also ends and pads sequences, for want of marks that do.

    Returns:
        PreTrainedTokenizerFast: 260 tokens.
    """
    vocabulary = {character: byte for byte, character in enumerate(_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Ids are given out in this order, from 256 on.
    names = [decode(np.array([mark])) for mark in (BOS, SEP, KEY, QRY)]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    bos = names[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, BOS)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=bos,
        pad_token=bos,
        clean_up_tokenization_spaces=False,
    )


def _characters() -> list[str]:
    """The printable character that stands for each byte in byte-level vocabularies.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, code.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in printable)
    code_points = {byte: byte for byte in printable} | {
        byte: 256 + rank for rank, byte in enumerate(others)
    }
    return [chr(code_points[byte]) for byte in range(256)]
