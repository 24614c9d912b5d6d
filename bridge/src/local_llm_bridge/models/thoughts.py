"""Telling what a model thought from what it answered, where both came as one text.

Engines that know a model's format send thoughts in a field of their own. Others pass on the model's tags, and where the
chat template holds the opening tag (DeepSeek-R1, QwQ), only the closing one. A text that merely mentions a tag, such as
code about such models, has to stay as it is: an opening tag counts at the very beginning, or where a line begins and
its closing one follows; neither counts in code, in quotes, within a sentence, or as an example.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

# As the reasoning parsers of vLLM, SGLang, llama.cpp and Ollama have them, and the lists of Open WebUI and its like.
_NAMES = (
    *("think", "thinking", "thought", "reasoning", "reasoning_scratchpad", "思考"),
    *("seed:think", "mm:think", "longcat_think", "think:opensource"),  # Seed-OSS, MiniMax-M3, LongCat, Hunyuan 3
)
_TAGS = (
    *((f"<{name}>", f"</{name}>") for name in _NAMES),
    ("[think]", "[/think]"),  # Mistral
    ("◁think▷", "◁/think▷"),  # Kimi-VL
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<|start_thinking|>", "<|end_thinking|>"),  # Cohere Command
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("<|think:start|>", "<|think:end|>"),  # Solar Open
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),  # Kimi K3
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # gpt-oss, where it does not begin with these
)
_MEANING = {tag: (number, tag == tags[0]) for number, tags in enumerate(_TAGS) for tag in tags}
_ANGLED = "|".join(re.escape(tag[1:]) for tag in _MEANING if tag[0] == "<")
_OTHERS = "|".join(re.escape(tag) for tag in _MEANING if tag[0] != "<")
# ASCII, so that what is found is in `_MEANING` once it is in lower case.
_TAG = re.compile(rf"<(?=[/|a-z思])(?:{_ANGLED})|{_OTHERS}", re.IGNORECASE | re.ASCII)
_FIRST = frozenset("<[◁")
_IN_CLOSING = ("</", "[/", "◁/", "|>")
# What may stand around the answer that follows thoughts.
_AROUND = (
    ("<answer>", "</answer>"),
    ("<response>", "</response>"),  # Granite, ERNIE
    ("<|begin_of_box|>", "<|end_of_box|>"),  # GLM
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("<|START_TEXT|>", "<|END_TEXT|>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
)
# Tags of less common models, and of those that were told to think in some. As an answer may be asked for in such a
# form, they count at the very beginning only, where they are closed, and where no other element follows.
_UNCOMMON = re.compile(
    r"(?:<\|?(?P<name>thoughts|reason|scratchpad|(?<=\|)(?:thinking|think|thought|reasoning))\|?>"
    r"|<(?P<details>details) type=\"reasoning\"[^<>]*>|<SPECIAL_12>)(?P<thoughts>.*?)(?<![\"'`])"
    r"(?:<\|(?:/|end_?(?:of_)?)(?P=name)\|>|</\|?(?P=name)\|?>|</(?P=details)>|<SPECIAL_13>)",
    re.IGNORECASE | re.DOTALL,
)
# Granite 3 has no tags; an engine may have left out those of gpt-oss.
_UNTAGGED = re.compile(r"Here(?: is|'s) my thought process:(.*?)Here(?: is|'s) my response:", re.DOTALL)
_STRIPPED = re.compile(r"(?<![^\w.!?\u3002\n*)\]}\"`$])assistant(?:final|commentary)(?! (?!to=)|[\n\t().,;:'\"=\]`])")
_IN_STRIPPED = ("assistantfinal", "assistantcommentary")
# What engines leave of the chat template before thoughts, and blanks that Python does not take for any.
_BLANK = r"\s\u200b\u2060\ufeff"
_BLANKS = re.compile(rf"[{_BLANK}]*")
_LEFT_BEFORE = re.compile(
    rf"(?:[{_BLANK}]|<s>|<bos>|<sop>|\[gMASK\]|<start_of_turn>|<\|turn>|(?:assistant|model)(?=[{_BLANK}<])"
    r"|<[|\uff5c](?:im_start|begin[_\u2581]of[_\u2581](?:text|sentence)|startoftext|assistant"
    r"|(?:start|end)_header_id|(?:start|end)_of_role|START_OF_TURN_TOKEN|CHATBOT_TOKEN)[|\uff5c]>)*+",
    re.IGNORECASE,
)
# How the model's own turn begins, where a template left that to the model.
_OWN_TURN = re.compile(
    rf"[{_BLANK}]*<\|?(?:im_start|turn|start_(?:header_id|of_turn|of_role))\|?>(?:assistant|model)"
    r"(?:<\|end_(?:header_id|of_role)\|>)?[ \t]*\n\s*"
)
_MESSAGES = ("<|channel|>", "<|start|>", "<|message|>")
_HEADER = re.compile(
    r"(?:<\|start\|>(?P<role>[^<]*))?(?:<\|channel\|>(?P<channel>[^<]*))?(?:<\|constrain\|>[^<]*)?<\|message\|>"
)
_MESSAGE_ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|eom|>", "<|eot|>")
# Any mark of a chat template, and those that end something; who passes them on as text may let the model go on, too.
_MARK = re.compile(
    r"<[|\uff5c](?!begin_of_box|end_of_box)[^<>|\uff5c\s]{1,40}[|\uff5c]>"
    r"|</?s>|<eos>|<(?:start|end)_of_turn>|<\|turn>|<turn\|>|\[INST\]"
)
_END_MARK = re.compile(
    r"<[|\uff5c](?:[^<>|\uff5c]*end|eo[a-z]|return|call|user|observation)|</s>|<eos>|<end|<turn", re.IGNORECASE
)
_IN_END_MARKS = ("|>", "\uff5c>", "</s>", "<eos>", "<end_of_turn>")
_BOX = ("<|begin_of_box|>", "<|end_of_box|>")
_FENCE = re.compile(r"^(?:[^`~\n]*>)?[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*(`{3,}|~{3,})([^\n]*)", re.MULTILINE)
# Where Python and JavaScript keep texts of more than one line.
_LITERALS = ('"""', "'''", "`")
# How a line ends, in prose or in code, that is not over or says what follows, and how one begins.
_GOES_ON = (*":,;([{=|\\<>\uff1a\uff0c\u3001", "%}", "}}")
_SAYS_WHAT = (":", "\uff1a")
_TITLES = ("#", "//", "-- ", "/*")
_ELEMENT = re.compile(rf"[{_BLANK}]*<(?!answer>|response>)[a-z!?]", re.IGNORECASE)
_QUOTES = frozenset("'\"`“”«»([\\/=")
_SINGLE_QUOTE = re.compile(r"(?<!\w)'|'(?!\w)")  # no apostrophe, which stands within a word
_SENTENCE_ENDS = frozenset(".!?…。\uff01\uff1f")
_ABBREVIATIONS = ("e.g.", "i.e.", "etc.", "vs.", "cf.")
_PLACEHOLDER = re.compile(r"[ \t]*(?:…|\.{3,}|[/,&|+])[ \t]*")
_SUBJECT = re.compile(r" (?:and|or|is|are|tags?|marks?|opens?|starts?|begins?|means?)\b")
_CODE_INDENT = 4
_NEAR = 200
"""How much of a line is looked at on both sides of a tag, in characters."""
_MOST_TAGS = 10_000
_MOST_GUESSES = 64
"""How often in a text the end is looked for of thoughts that no tag closes as it should."""


class _Tag(NamedTuple):
    """A tag in a text.

    Args:
        start: where it begins.
        end: where it ends.
        pair: number of the pair that it belongs to.
        opens: whether it is the first of the two.
        doubt: whether it is only mentioned: 0 no, 1 it stands between words, 2 it stands in code or quotes.
        leads: whether a line begins with it, and is none of a text within code.
    """

    start: int
    end: int
    pair: int
    opens: bool
    doubt: int
    leads: bool


def split(text: str, *, separate: bool = False) -> tuple[str | None, str]:
    """Return what a model thought, and what it answered.

    Args:
        text: all that it wrote, or as much as came.
        separate: whether thoughts came in a field of their own; then a closing tag without an opening one may be named
            in the answer, but it may also end thoughts whose last part the engine took for the answer.

    Returns: the thoughts, None if there are none, and the answer; if there are none, the text unchanged.
    """
    begin = _end_of(_LEFT_BEFORE, text)
    rest = text[begin:]
    if rest.startswith("Here") and (untagged := _UNTAGGED.match(rest)):
        return untagged[1], rest[untagged.end() :].lstrip()
    if "assistant" in rest and any(part in rest for part in _IN_STRIPPED) and (stripped := _split_stripped(rest)):
        return stripped
    if rest.startswith(_MESSAGES):
        return _split_messages(rest)
    if rest[:1] in _FIRST or any(part in rest for part in _IN_CLOSING):  # as in few
        thoughts: list[str] = []
        answer: list[str] = []
        at = 0
        for start, opened, end, after in _blocks(text, begin, separate=separate):
            answer.append(text[at:start])
            thoughts.append(text[opened:end])
            at = after
        if thoughts:
            return "".join(thoughts), "".join(answer) + _answer(text[at:])
        if (uncommon := _UNCOMMON.match(rest)) and (answered := _answer_to(uncommon)):
            return uncommon["thoughts"], answered
    ended = _ended(text)
    return None, ended if separate or ended.strip() else text


def _end_of(pattern: re.Pattern[str], text: str, at: int = 0) -> int:
    """Return where something ends that begins at a place, if only there."""
    match = pattern.match(text, at)
    return match.end() if match else at


def _blocks(text: str, begin: int, *, separate: bool) -> Iterator[tuple[int, int, int, int]]:
    """Yield where thoughts have their tag, where they begin and end, and where the text goes on.

    Args:
        text: all that the model wrote.
        begin: where it begins, after what is left of the template.
        separate: as `split` has it.
    """
    tags = list(islice(_tags(text), _MOST_TAGS))
    closings = _closings(tags)
    guesses = at = 0
    if not (tags and tags[0].opens and tags[0].start == begin):
        alone = _closing_alone(tags)
        if alone and not (separate and alone.start > begin and _is_named(text, alone)):
            at = _end_of(_BLANKS, text, alone.end)
            yield 0, 0, alone.start, at
    elif _is_subject(text, tags):
        return
    for number, tag in enumerate(tags):
        is_first = tag.start == (at or begin)
        if not tag.opens or tag.start < at or not (is_first or _may_begin_again(text, at or begin, tag)):
            continue
        closing = closings.get(number)
        if closing is None:
            guesses += 1
            if guesses > _MOST_GUESSES:
                return
            closing = _closing(tags, number)
        if not is_first and (closing is None or closing.doubt or _is_example(text, tag, closing)):
            continue
        start = tag.start if at or not is_first else 0
        at = _end_of(_BLANKS, text, closing.end) if closing else len(text)
        yield start, tag.end, closing.start if closing else len(text), at


def _may_begin_again(text: str, begin: int, tag: _Tag) -> bool:
    """Whether a tag within an answer may open more thoughts: what stands before it does not lead up to it.

    Args:
        text: all that the model wrote.
        begin: where its answer begins, or goes on after thoughts.
        tag: it opens some.
    """
    if tag.doubt:
        return False
    if not tag.leads:  # no prose has one of a model's own tokens right after a sentence
        return text[tag.start - 1] in _SENTENCE_ENDS and text.startswith("<|", tag.start)
    if _ELEMENT.match(text, begin):
        return False  # a document of XML or HTML
    words = text[max(begin, tag.start - _NEAR) : tag.start].rstrip()
    line = words[words.rfind("\n") + 1 :].strip(" \t*_")
    return not (line.endswith(_GOES_ON) or line.startswith(_TITLES) or "<<" in line)


def _is_example(text: str, tag: _Tag, closing: _Tag) -> bool:
    """Whether two tags within an answer are about thoughts, or part of a form that was asked for."""
    if _PLACEHOLDER.fullmatch(text, tag.end, closing.start) or _SUBJECT.match(text, tag.end):
        return True
    if "think" not in text[tag.start : tag.end].lower() and _ELEMENT.match(text, closing.end):
        return True
    # A sentence that goes on after them.
    before = text[max(0, tag.start - _NEAR) : tag.start].rstrip()[-1:]
    after = text[closing.end : closing.end + _NEAR]
    return before.isalnum() and after[:1].isspace() and after.lstrip()[:1].islower()


def _is_named(text: str, closing: _Tag) -> bool:
    """Whether a closing tag that nothing opened is rather named in an answer than the end of thoughts."""
    before, after = text[max(0, closing.start - _NEAR) : closing.start], text[closing.end : closing.end + _NEAR]
    words, following = before.rstrip(), after.lstrip()
    is_literal = before.endswith("\n") and not closing.leads
    if is_literal or not following or (after[0] == " " and following[0].islower()):
        return True
    if words == before and (words[-1].isascii() or after[0] == "\n"):
        return False  # right after a word, where only prose without blanks has one
    is_apart = "\n" in after[: after.find(following[0])].replace("\n", "", 1)
    return words[-1:] not in _SENTENCE_ENDS and (not is_apart or words.endswith(_GOES_ON))


def _closings(tags: list[_Tag]) -> dict[int, _Tag]:
    """Return the tags that close others as they should, by the numbers of these."""
    opened: dict[int, list[int]] = {}
    closings = {}
    for number, tag in enumerate(tags):
        numbers = opened.setdefault(tag.pair, [])
        if tag.doubt:
            continue
        if tag.opens:
            numbers.append(number)
        elif numbers:
            closings[numbers.pop()] = tag
    return closings


def _closing(tags: list[_Tag], number: int) -> _Tag | None:
    """Return the tag that ends what the one with this number opened; None: none does."""
    pair, depth = tags[number].pair, 0
    others = tags[number + 1 :]
    for tag in others:
        if tag.pair == pair and not tag.doubt:
            depth += 1 if tag.opens else -1
            if depth < 0:
                return tag
    # Models forget to close a second one, use a wrong name, and leave quotes and code open.
    closing = [tag for tag in others if not tag.opens]
    same = [tag for tag in closing if tag.pair == pair]
    surest = sorted(same, key=lambda tag: tag.doubt)
    if not surest or surest[0].doubt > 1:
        surest = [*same[-1:], *(tag for tag in closing if not tag.doubt)]
    return surest[0] if surest else None


def _closing_alone(tags: list[_Tag]) -> _Tag | None:
    """Return the tag that ends thoughts which nothing opened; None: there are none."""
    for tag in tags:
        if tag.opens and tag.doubt <= 1:
            return None
        if not tag.opens and not tag.doubt:
            return tag
    return None


def _is_subject(text: str, tags: list[_Tag]) -> bool:
    """Whether a text that begins with a tag is about it: "<think>…</think> is", "<think> and </think> are"."""
    if len(tags) == 1 or tags[1].opens:
        return False
    opening, closing = tags[:2]
    if _PLACEHOLDER.fullmatch(text, opening.end, closing.start):
        return text[closing.end : closing.end + 1] in {*" ,.;:)", ""}
    return closing.doubt == 1 and bool(_SUBJECT.match(text, opening.end))


def _answer(text: str) -> str:
    """Return an answer without what stands around it."""
    text = _ended(text.lstrip())
    for opening, closing in _AROUND:
        inner = text.removeprefix(opening)
        if inner is not text and (closing not in inner or inner.rstrip().endswith(closing)):
            return inner.rstrip().removesuffix(closing).strip()
    return text


def _answer_to(uncommon: re.Match[str]) -> str:
    """Return the answer that follows thoughts in tags which it may be about, or have as a part; empty: it is or has."""
    is_form = _ELEMENT.match(uncommon.string, uncommon.end()) or _PLACEHOLDER.fullmatch(uncommon["thoughts"])
    return "" if is_form else _answer(uncommon.string[uncommon.end() :])


def _ended(text: str) -> str:
    """Return an answer without the marks of a template around it, and without what a model wrote beyond that."""
    text = text[_end_of(_OWN_TURN, text) :]
    if ">" in text and any(part in text for part in _IN_END_MARKS):
        text = text[: _end_mark(text)]
    boxed = text.rstrip()
    start = boxed.rfind(_BOX[0]) if boxed.endswith(_BOX[1]) else -1
    before, inner = boxed[:start], boxed[start + len(_BOX[0]) : -len(_BOX[1])]
    return text if start < 0 or before.endswith("`") or inner[:1] == " " else before + inner


def _end_mark(text: str) -> int | None:
    """Return where an answer ends that has marks of a template after it; None: it has none, or is about them."""
    named = -1
    for match, doubt, is_literal in islice(_places(_MARK, text), _MOST_TAGS):
        at, end = match.span()
        before = text[max(0, at - _NEAR) : at]
        if doubt or is_literal or at == named or before.endswith((" ", "\t")):
            named = end
        elif not _END_MARK.match(match[0]) or (before.endswith("\n") and before.rstrip().endswith(_SAYS_WHAT)):
            return None  # it shows a template
        elif match[0] != "</s>" or "<s>" not in before:
            after = _end_of(_BLANKS, text, end)
            if after == len(text) or _MARK.match(text, after):
                return at
    return None


def _without_end(message: str) -> str:
    for end in _MESSAGE_ENDS:
        message = message.removesuffix(end)
    return message


def _split_messages(text: str) -> tuple[str, str]:
    """Return the thoughts and the answer of gpt-oss, which writes a message to each of its channels.

    The format is OpenAI's "harmony". What it says before a call counts if there is no final answer, and so does the
    call itself, as it came: it is no thought, and who reads it sees what the engine should have made of it.
    """
    thoughts, said, final = [], [], []
    headers = list(islice(_HEADER.finditer(text), _MOST_TAGS))
    if not headers:
        return text, ""
    is_answered = any((header["channel"] or "").startswith("final") for header in headers)
    for header, end in zip(headers, [*(header.start() for header in headers[1:]), len(text)], strict=True):
        channel = header["channel"] or ""
        recipient = f"{header['role'] or ''} {channel}".partition("to=")[2].split()
        body = _without_end(text[header.end() : end].rstrip())
        if channel.startswith("final") or (not channel and recipient in ([], ["user"])):
            final.append(body)
        elif not is_answered and _is_call(channel, recipient, body):
            said.append(text[header.start() : end].rstrip())
        elif channel.startswith("commentary") and not recipient:
            said.append(body)
        else:
            thoughts.append(body)
    return "".join(thoughts), ("".join(final) or "\n\n".join(said)).lstrip()


def _is_call(channel: str, recipient: list[str], body: str) -> bool:
    """Whether a message calls one of the tools that came with the request, even if an engine has lost which."""
    if recipient:
        return recipient[0].startswith("functions.")
    return channel.startswith("commentary") and body.startswith("{") and body.endswith("}")


def _split_stripped(text: str) -> tuple[str, str] | None:
    """Return the thoughts and the answer of gpt-oss without its tags; None: it is something else."""
    found = [match for match, doubt, _ in islice(_places(_STRIPPED, text), _MOST_TAGS) if not doubt]
    if not found:
        return None
    last = next((match for match in found if match[0].endswith("final")), found[0])
    is_call = text.startswith(" to=", last.end())
    answer = text[last.start() if is_call else last.end() :]
    return text[: last.start()].removeprefix("analysis"), _answer(answer)


def _tags(text: str) -> Iterator[_Tag]:
    """Yield the tags in a text. The text may be long, and may hold nothing else."""
    for match, doubt, is_literal in _places(_TAG, text):
        at, end = match.span()
        number, opens = _MEANING[match[0].lower()]
        leads = not is_literal and text[at - 1 : at] in {"", "\n"}
        yield _Tag(at, end, number, opens, doubt, leads)


def _places(pattern: re.Pattern[str], text: str) -> Iterator[tuple[re.Match[str], int, bool]]:
    """Yield what a pattern finds in a text, whether it is only mentioned (see `_Tag`), and is in a text within code."""
    line = line_end = seen = looked_at = 0
    in_code = False
    fence = ""
    has_fences = "```" in text or "~~~" in text
    counts: dict[str, int] = {}
    literals = {mark: (0, text.rfind(mark)) for mark in _LITERALS if mark in text}
    for match in pattern.finditer(text):
        at, end = match.span()
        if at >= line_end:
            start = text.rfind("\n", line_end and line_end - 1, at) + 1
            fence = _fence_at(start, text, line, fence) if has_fences else ""
            in_code = bool(fence and _fence_at(at, text, start, fence))
            line, seen = start, start
            line_end = text.find("\n", end) + 1 or len(text) + 1
            counts = dict.fromkeys('`"', 0)
        for mark in counts:
            counts[mark] += text.count(mark, seen, at)
        seen = at
        near = min(end + _NEAR, line_end)
        is_quoted = any(count % 2 and text.find(mark, end, near) >= 0 for mark, count in counts.items())
        around = (text[at - 1 : at] if at else "", text[end : end + 1])
        before, after = text[max(line, at - _NEAR) : at], text[end:near]
        if in_code or is_quoted or _QUOTES.issuperset(around) or ("'" in before and _is_in_a_string(before, after)):
            doubt = 2
        else:
            doubt = _is_in_a_sentence(before, after)
        literals = {mark: (n + text.count(mark, looked_at, at), last) for mark, (n, last) in literals.items()}
        looked_at = at
        yield match, doubt, any(n % 2 and last > at for n, last in literals.values())


def _fence_at(end: int, text: str, start: int, fence: str) -> str:
    """Return the marks of the code that is open at a place, given those at an earlier one; empty: there is none."""
    for marks, rest in _FENCE.findall(text, start, end):
        if not fence:
            fence = "" if marks[0] in rest else marks  # code within a line has its end there
        elif marks.startswith(fence) and rest.lstrip()[:1] in {"", "<"}:
            fence = ""  # a tag may follow at once
    return fence


def _is_in_a_string(before: str, after: str) -> bool:
    """Whether single quotes stand around a place in a line."""
    return len(_SINGLE_QUOTE.findall(before)) % 2 == 1 and _SINGLE_QUOTE.search(after) is not None


def _is_in_a_sentence(before: str, after: str) -> bool:
    """Whether a tag stands between words, or in a line that is indented as code is.

    Args:
        before: the end of what stands before it in its line.
        after: the beginning of what stands after it.
    """
    words = before.strip()
    if not words:
        return len(before.expandtabs(_CODE_INDENT)) >= _CODE_INDENT
    following = after.strip()
    if not following:
        return False
    if following[0] in ",.;:!?)|":
        return True
    if not before[-1].isspace() or not after[0].isspace():
        return words[-1] == "(" and before[-1] == "("
    is_numbered = words.removesuffix(".").isdigit() and words[-1] == "."
    has_ended = words[-1] in _SENTENCE_ENDS and not is_numbered and not words.endswith(_ABBREVIATIONS)
    return not (has_ended or following[0].isdigit())
