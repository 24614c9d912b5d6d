"""Trains the tiny model, saves it, and scores what was saved.

usage: python train.py FOLDER

From nothing if FOLDER is empty. If it holds a model, that one learns on, which is enough after a change of the lessons.
"""

import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import known_answers
import lessons
import torch
from known_answers import Case
from tokenizer import train_tokenizer
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

SEED = 0
STEPS_FROM_NOTHING, RATE_FROM_NOTHING = 900, 3e-3
STEPS_TO_LEARN_ON, RATE_TO_LEARN_ON = 300, 1e-3
WARM_UP = 40  # steps
BATCH_TOKENS = 3072  # padding included
Tokens = tuple[list[int], list[int]]


def encode(tokenizer: PreTrainedTokenizerBase, case: Case) -> Tokens:
    """The tokens of the prompt, and those that the model must add to it, <|im_end|> included."""
    messages, tools = list(case.messages), list(case.tools) or None
    prompt = str(tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False))
    whole = str(tokenizer.apply_chat_template([*messages, case.reply], tools=tools, tokenize=False))
    reply = whole.removeprefix(prompt).removesuffix("\n")
    return tokenizer(prompt)["input_ids"], tokenizer(reply)["input_ids"]


def padded(batch: list[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of shape (conversation, token), and the next token for each place, -100 where it is not to be learnt."""
    length = max(len(prompt) + len(reply) for prompt, reply in batch)
    inputs = torch.zeros((len(batch), length), dtype=torch.long)
    targets = torch.full((len(batch), length), -100)
    for row, (prompt, reply) in enumerate(batch):
        inputs[row, : len(prompt) + len(reply)] = torch.tensor(prompt + reply)
        targets[row, len(prompt) - 1 : len(prompt) + len(reply) - 1] = torch.tensor(reply)
    return inputs, targets


def batches(tokenizer: PreTrainedTokenizerBase, rng: Random) -> Iterator[list[Tokens]]:
    """Batches without end, each of conversations of about the same length, so that little is padding."""
    while True:
        pool = sorted((encode(tokenizer, lessons.lesson(rng)) for _ in range(256)), key=lambda t: len(t[0]) + len(t[1]))
        ready: list[list[Tokens]] = [[]]
        for tokens in pool:
            if (len(ready[-1]) + 1) * (len(tokens[0]) + len(tokens[1])) > BATCH_TOKENS:
                ready.append([])
            ready[-1].append(tokens)
        rng.shuffle(ready)
        yield from ready


def new_model(tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    """A Qwen2 of 2.1 million parameters that knows nothing."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=math.ceil(len(tokenizer) / 64) * 64,
            hidden_size=192,
            intermediate_size=576,
            num_hidden_layers=4,
            num_attention_heads=3,
            num_key_value_heads=1,
            max_position_embeddings=32768,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, steps: int, peak: float) -> None:
    """Teaches the model lessons.

    Args:
        model: in float32; changed in place.
        tokenizer: the one that the model was made for.
        steps: how many batches.
        peak: the learning rate, reached after WARM_UP steps and kept for half of them all, then falling to nothing.
    """
    model.set_attn_implementation("eager")  # a quarter faster than the default on a CPU, at these sizes
    # Muon learns this in a third of AdamW's steps; it is for the layers' matrices only.
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    others = [p for name, p in model.named_parameters() if "layers" not in name or p.dim() == 1]
    optimizers = [
        torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    started = time.monotonic()
    rng = Random(SEED)  # noqa: S311 (nothing secret)
    for step, batch in zip(range(steps), batches(tokenizer, rng), strict=False):
        inputs, targets = padded(batch)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[targets != -100])
        loss = cross_entropy(logits.float(), targets[targets != -100])
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = peak * min(1.0, (step + 1) / WARM_UP, 2 * (1 - step / steps))
            optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.4f}, {time.monotonic() - started:.0f} s", flush=True)


def save(model: Qwen2ForCausalLM, folder: Path) -> None:
    """Writes bfloat16 weights and configuration in Hugging Face's layout."""
    end, padding = model.config.eos_token_id, model.config.pad_token_id
    model.generation_config.eos_token_id = [end, padding]
    model.generation_config.pad_token_id = padding
    model.to(torch.bfloat16).save_pretrained(folder)


def score(folder: Path) -> None:
    """Prints, for each category, how sure the saved model is of the right tokens.

    Exact: the right token is the likeliest everywhere, so temperature 0 gives the right reply.
    Sampled: the probability of the whole right reply at temperature 0.7 without top-k or top-p, the worst case's.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    cases = [*known_answers.known(), *known_answers.unknown()]
    for category in dict.fromkeys(case.category for case in cases):
        wrong, sampled, surest = [], [], []
        chosen = [case for case in cases if case.category == category]
        for case in chosen:
            prompt, reply = encode(tokenizer, case)
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1].float()
            right = torch.tensor(reply)[:, None]
            sampled.append(torch.log_softmax(logits / 0.7, -1).gather(1, right).sum().exp().item())
            surest.append(torch.softmax(logits, -1).gather(1, right).min().item())
            if (logits.argmax(-1) != right[:, 0]).any():
                wrong.append(case.messages[-1]["content"])
        print(
            f"{category}: {len(chosen) - len(wrong)}/{len(chosen)} exact, least sure token {min(surest):.4f}, "
            f"sampled {min(sampled):.4f} at worst, {sum(sampled) / len(sampled):.5f} on average",
            *wrong[:5],
            sep="\n  ",
        )


def main() -> None:
    """Trains, saves and scores."""
    folder = Path(sys.argv[1])
    torch.manual_seed(SEED)
    if (folder / "config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        train(model, tokenizer, STEPS_TO_LEARN_ON, RATE_TO_LEARN_ON)
    else:
        tokenizer = train_tokenizer()
        tokenizer.save_pretrained(folder)
        model = new_model(tokenizer)
        train(model, tokenizer, STEPS_FROM_NOTHING, RATE_FROM_NOTHING)
    save(model, folder)
    score(folder)


if __name__ == "__main__":
    main()
