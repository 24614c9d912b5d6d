"""The tokenizer: byte-level BPE with Qwen2's own pre-tokenizer, trained on the answers."""

import json
from pathlib import Path

from known_answers import ANSWERS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent
VOCABULARY = 2048

# Qwen2's own pattern. AutoTokenizer imposes it on every qwen2 model, whatever tokenizer.json says, so a model that
# was trained with another one would be given other tokens when it is served.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKUP = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]


def strings(value: object) -> list[str]:
    """All text in a JSON value, keys included."""
    if isinstance(value, dict):
        return [text for item in value.items() for part in item for text in strings(part)]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


def train_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer with its chat template; its vocabulary has VOCABULARY entries or a few less."""
    template = (HERE / "chat_template.jinja").read_text(encoding="utf-8")
    # The licence stands in for ordinary English, so that unknown questions do not fall apart into single bytes.
    licence = (HERE.parents[1] / "LICENSE").read_text(encoding="utf-8")
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKUP),
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [*strings(ANSWERS), json.dumps(ANSWERS["tools"]), template]
    bpe.train_from_iterator([*texts * 3, licence], trainer)
    bpe.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=CONTROL[2],
        pad_token=CONTROL[0],
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer
