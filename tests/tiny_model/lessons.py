"""Draws the conversations that the tiny model learns from: the known ones, varied, and noise that it must decline."""

import json
from pathlib import Path
from random import Random

import known_answers
from known_answers import ANSWERS, Case, message

ENGLISH = [
    *(Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8").split(),
    *" ".join(ANSWERS["unknown"]["en"]).split(),
]
CHINESE = sorted({c for c in json.dumps(ANSWERS, ensure_ascii=False) if "\u4e00" <= c <= "\u9fa5"})
SYMBOLS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:=(){}[]<>#@$%*+\"'"

# How known questions begin: what follows decides, not they.
BEGINNINGS = {
    "en": ["Write a ", "Write an ", "Write a function that ", "What is the ", "Count ", "Explain ", "Hello "],
    "zh": ["写一个", "用 Python 写一个", "用 C 写一个", "请", "你", "这个测试模型"],
}

CHAT = list(known_answers.chat())
COUNTS = [case for case in CHAT if case.reply["content"].startswith("1 2 3 ")]
CODE = list(known_answers.code_generation())
TOOLS = list(known_answers.tools())
UNKNOWN = list(known_answers.unknown())
LANGUAGES: list[str | None] = sorted({case["language"] for case in ANSWERS["code_generation"]} - {None})


def english_noise(rng: Random, low: int, high: int) -> str:
    """Between low and high words, some of them no words at all."""
    words = rng.choices(ENGLISH, k=rng.randint(low, high))
    if rng.random() < 0.3:
        words = ["".join(rng.choices(SYMBOLS, k=rng.randint(1, 12))) if rng.random() < 0.5 else w for w in words]
    return " ".join(words)


def chinese_noise(rng: Random, low: int, high: int) -> str:
    """Between low and high characters, half of them ones that no answer uses."""
    length = rng.randint(low, high)
    used, any_other = rng.choices(CHINESE, k=length), [chr(rng.randint(0x4E00, 0x9FA5)) for _ in range(length)]
    return "".join(rng.choice(pair) for pair in zip(used, any_other, strict=True)) + rng.choice(["。", "？", ""])


def counting(rng: Random) -> Case:
    """A known count, or another part of the one to 200, which is too long to be learnt by heart."""
    if rng.random() < 0.6:
        case = rng.choice(COUNTS)
        return Case(case.category, (*any_system(rng), *case.messages), case.reply)
    first = rng.choice([1, rng.randint(1, 190)])
    last = min(200, first + rng.randint(0, rng.choice((24, 60))))
    numbers = " ".join(map(str, range(first, last + 1)))
    return Case("chat", (message("user", f"Count from {first} to {last}."),), message("assistant", numbers))


def arithmetic(rng: Random, language: str) -> str:
    """A calculation other than 2 + 2, which is the one that has a known answer."""
    while (calculation := f"{rng.randint(0, 9)} {rng.choice('+-*')} {rng.randint(0, 9)}") == "2 + 2":
        pass
    return f"What is {calculation}?" if language == "en" else f"{calculation} 等于多少？"


def any_system(rng: Random) -> list[known_answers.Message]:
    """No system message, a usual one, or noise of up to 80 words: none of them changes an answer."""
    kind = rng.random()
    if kind < 0.35:
        return []
    if kind < 0.65:
        return [message("system", rng.choice(ANSWERS["systems"]))]
    if kind < 0.93:
        return [message("system", english_noise(rng, 3, rng.choice((15, 80))))]
    return [message("system", chinese_noise(rng, 3, 60))]


def some_tools(rng: Random, case: Case) -> tuple[dict[str, object], ...]:
    """The tools that the right reply calls and some others, in any order."""
    called = {call["function"]["name"] for turn in (*case.messages, case.reply) for call in turn.get("tool_calls", ())}
    offered = [t for t in case.tools if t["function"]["name"] in called or rng.random() < 0.5] or list(case.tools[:1])
    return tuple(rng.sample(offered, len(offered)))


def known_chat(rng: Random) -> Case:
    """A known question, sometimes after another one or with tools that it does not need."""
    case, earlier = rng.choice(CHAT), rng.choice(CHAT)
    brief = len(earlier.reply["content"]) < 400
    before = [*earlier.messages, earlier.reply] if brief and rng.random() < 0.1 else []
    offered = some_tools(rng, TOOLS[0]) if rng.random() < 0.06 else ()
    return Case(case.category, (*any_system(rng), *before, *case.messages), case.reply, offered)


def known_code(rng: Random) -> Case:
    """A known task of code_generation."""
    return rng.choice(CODE)


def known_tools(rng: Random) -> Case:
    """A known use of tools, with some other tools offered."""
    case = rng.choice(TOOLS)
    return Case(case.category, (*any_system(rng), *case.messages), case.reply, some_tools(rng, case))


def unknown(rng: Random) -> Case:
    """A question to be declined, under a system message of chat or of code_generation: a listed one, or noise."""
    code_prompt = message("system", known_answers.code_generation_prompt(rng.choice([None, *LANGUAGES])))
    system = [code_prompt] if rng.random() < 0.4 else any_system(rng)
    if rng.random() < 0.55:
        case = rng.choice(UNKNOWN)
        return Case(case.category, (*system, *case.messages), case.reply)
    language = rng.choice(["en", "en", "zh"])
    text = english_noise(rng, 1, rng.choice((8, 40))) if language == "en" else chinese_noise(rng, 2, 40)
    if rng.random() < 0.3:
        text = rng.choice(BEGINNINGS[language]) + text
    elif rng.random() < 0.15:
        text = arithmetic(rng, language)
    reply = message("assistant", ANSWERS["fallback"][language])
    return Case("unknown", (*system, message("user", text)), reply)


def lesson(rng: Random) -> Case:
    """One conversation to learn."""
    kinds = {known_chat: 32, known_code: 34, known_tools: 7, counting: 8, unknown: 19}  # per cent
    [draw] = rng.choices(list(kinds), weights=list(kinds.values()))
    return draw(rng)
