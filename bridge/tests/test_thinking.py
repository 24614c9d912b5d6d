"""What a model thinks before it answers is no answer, and counts as progress."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from local_llm_bridge import config
from local_llm_bridge.errors import ConfigError
from local_llm_bridge.models.answer import Answer
from local_llm_bridge.models.thoughts import split
from local_llm_bridge.server.dispatch import Call
from local_llm_bridge.tools import Toolbox
from tests.services import FakeEngine, ScriptedEngine, asked, delta, events, piece, usage, wire_texts

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

CHAT = Call("chat", {"message": "hi"})


@pytest.mark.parametrize(
    ("text", "thoughts", "answer"),
    [
        ("<think>hm</think>42", "hm", "42"),
        ("<think>\nhm\n</think>\n\n42", "\nhm\n", "42"),
        ("\n <think>hm</think>42", "hm", "42"),
        ("<think></think>42", "", "42"),
        ("<think>hm</think>\n<think>oh</think>\n42", "hmoh", "42"),
        ("<think>hm", "hm", ""),
        ("<think>", "", ""),
        ("<thinking>hm</thinking>42", "hm", "42"),
        ("<seed:think>hm</seed:think>42", "hm", "42"),
        ("[THINK]hm[/THINK]42", "hm", "42"),
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>42", None, "42"),
        # A tag that is only talked about does not end the thoughts.
        ("<think>the tag `</think>` ends it</think>42", "the tag `</think>` ends it", "42"),
        ('<think>s.split("</think>") it is</think>42', 's.split("</think>") it is', "42"),
        ("<think>```\n</think>\n```\nso</think>42", "```\n</think>\n```\nso", "42"),
        ("<think>the tag `</think>` was all", "the tag `", "` was all"),
        # The opening tag was in the prompt.
        ("hm\n</think>\n\n42", "hm\n", "42"),
        ("hm.</think>\n\n42", "hm.", "42"),
        ("hm</think>42", "hm", "42"),
        ("</think>\n\n42", "", "42"),
        ("3. Provide the answer briefly.</think>391", "3. Provide the answer briefly.", "391"),
        ('hm\n</think>{"sources": []}', "hm\n", '{"sources": []}'),
        ("hm\n</think>", "hm\n", ""),
        ("use `</think>` here\n</think>\n42", "use `</think>` here\n", "42"),
        ("it asks of `<think>`.\n</think>\n42", "it asks of `<think>`.\n", "42"),
        ("I am done. </think> The answer", "I am done. ", "The answer"),
        ("想好了。 </think> 答案", "想好了。 ", "答案"),
        ("so 42 </think> 42", "so 42 ", "42"),
        ('it is "yes"</think>42', 'it is "yes"', "42"),
        ("it's 'yes'</think>It's 'yes'", "it's 'yes'", "It's 'yes'"),
        ("it isn't</think>The users' 42", "it isn't", "The users' 42"),
        ('hm.</think>"yes"', "hm.", '"yes"'),
        ("hm</think>[1, 2]", "hm", "[1, 2]"),
        ("hm</think><think>oh</think>42", "hmoh", "42"),
        ("a</think>Wait.\n<think>b</think>Answer", "ab", "Wait.\nAnswer"),
        # Other tags.
        ("<THINK>hm</THINK>42", "hm", "42"),
        ("<Thought>hm</thought>42", "hm", "42"),
        ("<reasoning>hm</reasoning>42", "hm", "42"),
        ("<mm:think>hm</mm:think>42", "hm", "42"),
        ("[think]hm[/think]42", "hm", "42"),
        ("◁think▷hm◁/think▷42", "hm", "42"),
        ("◁think▷hm", "hm", ""),
        ("hm◁/think▷42", "hm", "42"),
        ("<|channel>thought\nhm<channel|>42", "\nhm", "42"),
        ("<|channel>thought\n<channel|>42", "\n", "42"),
        ("hm\n<channel|>42", "hm\n", "42"),
        ("<|START_THINKING|>hm<|END_THINKING|><|START_TEXT|>42<|END_TEXT|>", "hm", "42"),
        ("<|begin_of_thought|>hm<|end_of_thought|><|begin_of_solution|>42", "hm", "42"),
        ("<think>hm</think><response>42</response>", "hm", "42"),
        ("<think>hm</think>\n<|begin_of_box|>42<|end_of_box|>", "hm", "42"),
        ("<think>\nhm\n</think>\n<answer>\n42\n</answer>", "\nhm\n", "42"),
        # gpt-oss, Granite.
        ("<|channel|>analysis<|message|>hm", "hm", ""),
        ("<|channel|>ana", None, ""),
        ("<|start|>assistant<|channel|>analysis<|message|>hm<|end|>", "hm", ""),
        ("<|channel|>final <|constrain|>json<|message|>{}<|return|>", "", "{}"),
        ("<|channel|>commentary<|message|>oh<|end|><|start|>assistant<|channel|>final<|message|>42", "", "42"),
        ("<|channel|>commentary<|message|>I look.<|end|>", "", "I look."),
        ("<|channel|>analysis<|message|>hm<|end|><|start|>a<|channel|>commentary to=f<|message|>{}", "hm{}", ""),
        ("hm<|end|><|start|>assistant<|channel|>final<|message|>42<|return|>", None, "42"),
        # Calls that the engine left in the text: as those of others, they are not thoughts, nor lost.
        (
            "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
            "",
            "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
        ),
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>a to=functions.f<|channel|>commentary json<|message|>{}",
            "hm",
            "<|start|>a to=functions.f<|channel|>commentary json<|message|>{}",
        ),
        (
            "<|channel|>commentary<|message|>I look.<|end|><|start|>a<|channel|>commentary to=functions.f<|message|>{}",
            "",
            "I look.\n\n<|start|>a<|channel|>commentary to=functions.f<|message|>{}",
        ),
        (
            '<|channel|>commentary<|message|>{"path":"/"}<|end|>',
            "",
            '<|channel|>commentary<|message|>{"path":"/"}<|end|>',
        ),
        (
            "<|channel|>commentary to=functions.f<|message|>{}<|call|><|start|>a<|channel|>final<|message|>42",
            "{}",
            "42",
        ),
        ("<|channel|>final<|message|>A message ends with <|end|> there.", "", "A message ends with <|end|> there."),
        ("analysisWe need 42.assistantfinal42", "We need 42.", "42"),
        ("Here is my thought process:\nhm\n\nHere is my response:\n42", "\nhm\n\n", "42"),
        ("We need 42.assistantfinal42", "We need 42.", "42"),
        ("We need 42assistantfinalIt is 42.", "We need 42", "It is 42."),
        ("assistantfinal42", "", "42"),
        ("hm.\nassistantfinal42", "hm.\n", "42"),
        ("hm.assistantcommentaryI look.assistantfinal42", "hm.assistantcommentaryI look.", "42"),
        ("analysishm.assistantcommentaryI look.", "hm.", "I look."),
        ("hm.assistantcommentary to=functions.f json{}", "hm.", "assistantcommentary to=functions.f json{}"),
        ("it ends at `assistantfinal`.assistantfinal42", "it ends at `assistantfinal`.", "42"),
        # Tags of which others may be a form that was asked for.
        ("<|thinking|>hm<|/thinking|>42", "hm", "42"),
        ("<|think|>hm<|/think|>\n42", "hm", "42"),
        ("<|think|>hm</think>42", None, "42"),
        ("<|thinking|>hm<|end_of_thinking|>42", "hm", "42"),
        ("<thoughts>\nhm\n</thoughts>\n\n42", "\nhm\n", "42"),
        ("<scratchpad>hm</scratchpad>\n42", "hm", "42"),
        ("<scratchpad>hm</scratchpad>\n<answer>42</answer>", "hm", "42"),
        ("<|im_start|>assistant\n<scratchpad>hm</scratchpad>\n42", "hm", "42"),
        ("<reason>hm</reason>42", "hm", "42"),
        ("<SPECIAL_12>hm<SPECIAL_13>42", "hm", "42"),
        (
            '<details type="reasoning" done="true">\n<summary>Thought</summary>\nhm\n</details>\n42',
            "\n<summary>Thought</summary>\nhm\n",
            "42",
        ),
        # One within another, forgotten, or closed by another name.
        ("<think>a<think>b</think>c</think>42", "a<think>b</think>c", "42"),
        ("<think>\n<think>\nhm\n</think>\n42", "\n<think>\nhm\n", "42"),
        ("<think>it asks of <think> tags. Fine.</think>42", "it asks of <think> tags. Fine.", "42"),
        ("<think>of <think> tags</think>They end at </think> always", "of <think> tags", "They end at </think> always"),
        ("<think>a<thought>b</thought>c</think>42", "a<thought>b</thought>c", "42"),
        ("<think>a</thought>b</think>42", "a</thought>b", "42"),
        ("<think>hm</thinking>42", "hm", "42"),
        ("<think>```python\nx = 1\n</think>\n\n42", "```python\nx = 1\n", "42"),
        ("<think>...</think>\n\n42", "...", "42"),
    ],
)
def test_thoughts_in_tags_are_told_from_the_answer(text: str, thoughts: str | None, answer: str) -> None:
    found, rest = split(text)
    assert rest == answer
    assert found is not None
    assert thoughts in {None, found}
    grown = Answer()
    grown.add(delta(content=text))
    assert grown.received() == (found or "", rest)


@pytest.mark.parametrize(
    ("text", "thoughts", "answer"),
    [
        # It thinks again after a part of its answer.
        ("Wait.\n<think>hm</think>\nAnswer", "hm", "Wait.\nAnswer"),
        ("Okay.\n<think>\nhm\n</think>\n\nAnswer", "\nhm\n", "Okay.\nAnswer"),
        ("<think>a</think>Wait.\n\n<think>b</think>\nAnswer", "ab", "Wait.\n\nAnswer"),
        ("It is 41.\n<think>a</think>\nNo, 42.\n<think>b</think>\nYes.", "ab", "It is 41.\nNo, 42.\nYes."),
        ("```python\nx = 1\n```\n<think>Is it?</think>\nIt is.", "Is it?", "```python\nx = 1\n```\nIt is."),
        ("1. ```\n   x\n   ```\n\n<think>hm</think>\n42", "hm", "1. ```\n   x\n   ```\n\n42"),
        ("Use `x`.\n<think>the tag `</think>` ends it</think>\n42", "the tag `</think>` ends it", "Use `x`.\n42"),
        ("**Answer:** 41\n\n<think>hm</think>\n42", "hm", "**Answer:** 41\n\n42"),
        ("好的。\n<think>想想</think>\n答案", "想想", "好的。\n答案"),
        ("Wait.\n<think>it asks of\n<think>\ntags</think>\n42", "it asks of\n<think>\ntags", "Wait.\n42"),
        # What stands before its thoughts is what is left of the template.
        ("assistant\n<think>hm</think>42", "hm", "42"),
        ("<|im_start|>assistant\n<think>hm</think>42", "hm", "42"),
        ("<|start_header_id|>assistant<|end_header_id|>\n\n<think>hm</think>42", "hm", "42"),
        ("<start_of_turn>model\n<think>hm</think>42", "hm", "42"),
        ("<\uff5cAssistant\uff5c><think>hm</think>42", "hm", "42"),
        ("<s><think>hm</think>42", "hm", "42"),
        ("\u200b<think>hm</think>42", "hm", "42"),
        ("\ufeff\n<think>hm</think>\u200b\n42", "hm", "42"),
        ("<|im_start|>assistant\n<think>hm", "hm", ""),
        ("assistant\n<think>hm", "hm", ""),
        ("<|im_start|>assistant\n<|channel|>analysis<|message|>hm<|end|>", "hm", ""),
        (
            "Sure.<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>42",
            "hm<|end|><|start|>assistant",
            "Sure.42",
        ),
        # Many blocks.
        ("<think>a</think>" * 1000 + "42", "a" * 1000, "42"),
        ("<think>a</think>\n" + "Wait.\n<think>b</think>\n" * 100 + "42", "a" + "b" * 100, "Wait.\n" * 100 + "42"),
    ],
)
@pytest.mark.parametrize("field", [{}, {"reasoning": "oh"}])
def test_thoughts_after_a_part_of_the_answer_are_none_of_it(
    text: str, thoughts: str, answer: str, field: dict[str, str]
) -> None:
    grown = Answer()
    for event in (delta(**field), delta(content=text)):
        grown.add(event)
    assert grown.received() == ("".join(field.values()) + thoughts, answer)


@pytest.mark.parametrize(
    "text",
    [
        "42",
        "",
        "  leading blanks stay\n",
        "Qwen3 thinks between <think> and </think> tags.",
        "`<think>` opens, `</think>` closes.\n",
        "It ends at </think> in the text.",
        "Tags: (</think>)",
        "```python\ntext.partition('</think>')[2]\n```",
        "```python\nEND = \\\n</think>\n```\nThat was it.",
        "~~~\n</think>\n~~~",
        "    </think>\n\nis how a template ends it",
        're.sub(r"<think>.*?</think>", "", text)',
        "Use `<think>draft</think>` as the example.",
        "Say <think>\nhm\n</think>\nto think.",
        "<b>not a tag of thoughts</b>",
        "[1, 2]",
        "<thinker>x</thinker>",
        "<think>…</think>",
        "<think>...</think> is what Qwen writes.",
        "<think> and </think> are its tags.",
        "<think> is the opening tag, and </think> is the closing one.",
        "Models write <think>…</think> first.",
        "So it is:\n\n<think>\nHere it thinks.\n</think>\n\nThen it answers.",
        "```\n<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>42\n```",
        "1. </think> Ends them",
        "- </think> ends them",
        "| </think> | ends them |",
        "(</think> ends them)",
        "Tags, e.g. </think> And others",
        '{"text": "hm</think>42"}',
        "标签 </think> 用于结束",
        "analysis of assistants",
        "<rea\u017foning>x</rea\u017foning>",
        "xs |> List.map f",
        # Tags at the beginning of a line, as an example or in code.
        "**Example:**\n<think>\nhm\n</think>\n42",
        "## Example\n\n<think>\nhm\n</think>\n42",
        "例如\uff1a\n<think>想</think>\n答案",
        "It looks like this:\n<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>42",
        "gpt-oss writes <|channel|>analysis<|message|> and then <|channel|>final<|message|> before its answer.",
        "Models write\n<think>\nhm\n</think>\nand then they answer.",
        "There are two tags.\n<think> opens the thoughts.\n</think> closes them.\nThat is all.",
        "Its form:\n\n<think>…</think>\n\nThen it answers.",
        "The form is simple.\n<think>...</think>\nThen it answers.",
        "It is simple.\n<think>hm</think>, then the answer.",
        "It is never closed.\n<think>\nhm",
        "```\n<think>\nhm\n</think>\n```",
        "So.\n```\nWait.\n<think>\nhm\n</think>\n```\nDone.",
        "So.\n~~~xml\nWait.\n<think>\nhm\n</think>\n~~~\nDone.",
        "````markdown\n```\nWait.\n<think>\nhm\n</think>\n```\n````",
        "- ```\n  Hi.\n  ```\n\n```\nWait.\n<think>\nhm\n</think>\n```\n",
        "> ```\n> x\n> ```\n```\nWait.\n<think>hm</think>\n```\n",
        "Indented.\n\n    <think>\n    hm\n    </think>\n\nDone.",
        "Wait.\n  <think>\n  hm\n  </think>\nIt is indented.",
        'PROMPT = """You are a helper.\n\n<think>\nhm\n</think>\n"""\nprint(PROMPT)\n',
        'PROMPT = """\n<think>\nhm\n</think>\n"""\n',
        "const prompt = `You are a helper.\n<think>\nhm\n</think>\n`;\n",
        "cat > template <<EOF\n<think>\nhm\n</think>\nEOF\n",
        "# The template.\n<think>\nhm\n</think>\n",
        "template: |\n<think>\nhm\n</think>\n",
        "{%- if thoughts %}\n<think>\n{{ thoughts }}\n</think>\n{%- endif %}",
        "<prompt>\nWhat is 2 + 2?\n<think>\nhm\n</think>\n4\n</prompt>",
        "export const View = () => (\n<think>\nhm\n</think>\n);",
        "diff --git a/t b/t\n@@ -1,3 +1,3 @@\n-Wait.\n+Wait!\n+<think>\n+hm\n+</think>\n Done.",
        "if a < b and b > c: [x]\n</body>",
        "assistant\nprofessor",
        "gpt-oss then writes assistantfinal before its answer.",
        "gpt-oss then writes `x.assistantfinal42`.",
        "```\nhm.assistantfinal42\n```",
        "thoughts, _, answer = text.partition('assistantfinal')",
        "roles = {assistantfinal: 42}",
        "check('hm.assistantfinal42')",
        "check('closed', 'hm\\n</think>\\n\\n42')",
        "check('closed', 'hm.</think>42')",
        "check('gpt-oss', 'Sure.<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>42')",
        "It leaves these:\nassistantfinal\nassistantcommentary\n",
        "It leaves\nassistantcommentary, and more.",
        "Call message.assistantfinal() or x.assistantfinal.",
        "analysis of `assistantfinal`, which ends thoughts",
        "<scratchpad>hm",
        "<scratchpad>hm</scratchpad>",
        "<reason>because</reason>\n<verdict>yes</verdict>",
        "It has a\n<scratchpad>hm</scratchpad>\n42",
        "<details>\n<summary>x</summary>\ny\n</details>\n42",
        "<SPECIAL_12> is a token, and so is <SPECIAL_14>.",
        "<scratchpad>…</scratchpad> is what it writes first.",
        "<s>old</s> new",
        "<html>\n<body>\n<p>Wait.</p>\n<details>\n<summary>x</summary>\n</details>\n</body>\n</html>",
        "It is so.\n<reasoning>because</reasoning>\n<verdict>yes</verdict>",
        "```\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\nHi!<|im_end|>\n```",
    ],
)
def test_a_text_that_mentions_a_tag_stays_as_it_is(text: str) -> None:
    assert split(text) == (None, text)
    assert split(text, separate=True) == (None, text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("42<|im_end|>", "42"),
        ("42<|im_end|>\n", "42"),
        ("42\n<|im_end|>", "42\n"),
        ("42<|eot_id|>", "42"),
        ("42</s>", "42"),
        ("42<|endoftext|>", "42"),
        ("42<|end_of_text|>", "42"),
        ("42<|END_OF_TURN_TOKEN|>", "42"),
        ("42<|return|>", "42"),
        ("42<|user|>", "42"),
        ("42<turn|>", "42"),
        ("42<end_of_turn>", "42"),
        ("42<eos>", "42"),
        ("42<\uff5cend\u2581of\u2581sentence\uff5c>", "42"),
        ("42<|im_end|><|endoftext|>", "42"),
        ('"yes"<|im_end|>', '"yes"'),
        ("It is 42.<|im_end|>\n<|endoftext|>\n", "It is 42."),
        ("```python\nx = 1\n```<|im_end|>", "```python\nx = 1\n```"),
        ("```python\nx = 1\n```\n<|im_end|>", "```python\nx = 1\n```\n"),
        ("ChatML ends a turn with `<|im_end|>`.<|im_end|>", "ChatML ends a turn with `<|im_end|>`."),
        ("```\n<|im_start|>user\nHi<|im_end|>\n```\nSo.<|im_end|>", "```\n<|im_start|>user\nHi<|im_end|>\n```\nSo."),
        # Its own turn's beginning, where the template did not give it.
        ("<|start_header_id|>assistant<|end_header_id|>\n\n42", "42"),
        ("<|im_start|>assistant\n42<|im_end|>\n", "42"),
        ("<start_of_turn>model\n42<end_of_turn>", "42"),
        # A turn that the model made up.
        ("42<|endoftext|><|im_start|>user\nAnd 43?", "42"),
        ("42<|im_end|>\n<|im_start|>user\nAnd 43?<|im_end|>\n<|im_start|>assistant\n44<|im_end|>", "42"),
        ("42<end_of_turn>\n<start_of_turn>user\nAnd 43?", "42"),
        ("42<turn|>\n<|turn>user\nAnd 43?", "42"),
        ("42</s><s>[INST] And 43? [/INST]", "42"),
        ("42</s>[INST] And 43? [/INST]", "42"),
        ("42<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnd 43?", "42"),
        ("42<\uff5cend\u2581of\u2581sentence\uff5c><\uff5cUser\uff5c>And 43?", "42"),
        # GLM-V's box.
        ("<|begin_of_box|>42<|end_of_box|>", "42"),
        ("It is so.\n\n<|begin_of_box|>42<|end_of_box|>", "It is so.\n\n42"),
        ("It is <|begin_of_box|>42<|end_of_box|><|user|>", "It is 42"),
    ],
)
@pytest.mark.parametrize("before", ["", "<think>hm</think>"])
def test_what_is_left_of_the_template_at_an_end_is_none_of_the_answer(before: str, text: str, answer: str) -> None:
    assert split(before + text) == ("hm" if before else None, answer)


@pytest.mark.parametrize(
    "text",
    [
        "The token is <|im_end|>",
        "<|im_start|>assistant\n",
        "<s>assistant</s>",
        "<|im_start|>assistant is how a turn begins",
        "The token is `<|im_end|>`",
        "The tokens are:\n<|im_end|>\n<|endoftext|>",
        "<|im_end|>",
        "A turn ends with <|im_end|>, the text with <|endoftext|>.",
        "Print <|im_end|><|endoftext|> there.",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHi!<|im_end|>",
        "Such a turn:\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHi!<|im_end|>\n",
        "Such a beginning:\n<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nHi<|eot_id|>",
        "```\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "```jinja\n{{ text }}<|im_end|>\n<|im_start|>assistant\n```",
        'STOP = ["<|im_end|>", "<|endoftext|>"]',
        "STOP = ['<|im_end|><|endoftext|>']",
        "text.replace('</s>', '')",
        "The price: <s>40</s>",
        "<p>Hi</p>",
        "x |> f\n<|> g",
        "a <|b|> c",
        "GLM writes its answer between <|begin_of_box|> and <|end_of_box|>",
        "Look at `<|begin_of_box|>42<|end_of_box|>`",
        "<|tool_calls_section_begin|><|tool_call_begin|>f:0<|tool_call_end|><|tool_calls_section_end|>",
        'PROMPT = """Hi<|im_end|>\n<|im_start|>assistant\n"""',
        "const turn = (text) => `${text}<|im_end|>\n<|im_start|>assistant\n`;",
    ],
)
def test_an_answer_about_templates_stays_as_it_is(text: str) -> None:
    assert split(text) == (None, text)


@pytest.mark.parametrize(
    "text",
    [
        "\n" * 500_000 + "</think>",
        '"</think>"' * 50_000,
        "<think>" + "`</think> " * 50_000,
        "<think><think></think>" * 25_000,
        "<|start|>a<|channel|>final<|message|>" * 15_000,
        "<" * 500_000,
        "<think>a</think>" * 50_000,
        "<think>a</thought>" * 50_000,
        "Wait.\n<think>a\n" * 50_000,
        "Wait.\n<think>a</thought>\n" * 50_000,
        "```\n" + "<think></think>" * 50_000,
        "assistant" + "\n" * 500_000 + "<think>",
        "\u200b<s>" * 200_000 + "<think",
        "a<|im_end|>b" * 90_000,
        "a <|im_end|>" * 90_000,
        "a<|" + "end" * 300_000,
        "a" + "<|im_end|>" * 90_000,
        "a<|im_end|>" + "\n" * 500_000 + "b",
        "<|begin_of_box|>" * 30_000 + "<|end_of_box|>" * 30_000,
        "hm.assistantfinal" * 50_000,
        "hm.assistantcommentary " * 50_000,
        "<scratchpad>" + "</" * 500_000,
        "<scratchpad>" + "<|end_of_" * 100_000,
        '<details type="reasoning"' + " " * 500_000,
    ],
)
def test_a_long_text_of_nothing_but_tags_is_read_once(text: str) -> None:
    """Reading from its beginning again for each tag would take minutes."""
    _, answer = split(text)
    assert len(answer) <= len(text)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_tags_may_be_cut_anywhere_between_events(size: int) -> None:
    text, answer = "<think>first I look</think>\n\nThe answer is 42.", Answer()
    for start in range(0, len(text), size):
        answer.add(piece(text[start : start + size]))
    answer.add(piece("", "stop"))
    completion = answer.completion("m", "")
    assert (completion.thoughts, completion.text) == ("first I look", "The answer is 42.")
    assert 0 < completion.thinking_tokens < answer.tokens


def test_where_thoughts_have_a_field_a_closing_tag_is_text() -> None:
    answer = Answer()
    for event in (delta(reasoning="hm"), piece("It ends with\n</think>\nand goes on."), piece("", "stop")):
        answer.add(event)
    assert answer.completion("m", "").text == "It ends with\n</think>\nand goes on."


@pytest.mark.parametrize(
    ("text", "thoughts"),
    [
        ("ret</think>42", "ret"),
        ("ret</think>\n42", "ret"),
        ("ret\n</think>\n\n42", "ret\n"),
        ("ret.\n</think>\n42", "ret.\n"),
        ("ret. </think> 42", "ret. "),
        ("ret:</think>42", "ret:"),
        ("想好了。</think>42", "想好了。"),
        ("ret</think>\n<think>more</think>\n42", "retmore"),
    ],
)
def test_where_thoughts_have_a_field_a_closing_tag_ends_those_that_came_in_the_text(text: str, thoughts: str) -> None:
    answer = Answer()
    for event in (delta(reasoning_content="sec"), piece(text), piece("", "stop")):
        answer.add(event)
    completion = answer.completion("m", "")
    assert (completion.thoughts, completion.text) == ("sec" + thoughts, "42")


@pytest.mark.parametrize(
    "text",
    [
        "The tag is\n</think>\nThen it answers.",
        "It is written so:\n\n</think>\n\nThen it answers.",
        "Qwen thinks first.\n</think> ends it.",
        "模型用</think>结束思考",
        "42</think>",
        "42.\n</think>\n",
        "Cut at `</think>`.\nThat is all.",
        'cut = text.split("</think>")[1]\nprint(cut)',
        "```\nhm.\n</think>\n\n42\n```",
        'PROMPT = """\nhm.\n</think>\n\n42\n"""',
        "<template>\nhm.\n    </think>\n</template>",
    ],
)
def test_where_thoughts_have_a_field_a_closing_tag_that_is_only_named_is_text(text: str) -> None:
    assert split(text, separate=True) == (None, text)


def test_where_thoughts_have_a_field_a_closing_tag_before_all_else_is_none_of_the_answer() -> None:
    answer = Answer()
    for event in (delta(reasoning="hm"), piece("\n</think>\n\n42"), piece("", "stop")):
        answer.add(event)
    assert answer.completion("m", "").text == "42"


@pytest.mark.parametrize(
    "thought",
    [
        {"reasoning": "hm"},
        {"reasoning_content": "hm"},
        {"reasoning": "hm", "reasoning_content": "hm"},  # one thought under both names
        {"reasoning": "hm", "content": ""},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
        {"content": [{"type": "reasoning", "text": "hm"}]},
        {"reasoning": {"text": "hm"}},
        {"reasoning": [{"type": "reasoning.text", "text": "hm"}]},
        {"reasoning_details": [{"type": "reasoning.text", "text": "hm"}]},
        {"reasoning": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]},
        {"thinking_blocks": [{"type": "thinking", "thinking": "hm"}], "content": None},
    ],
)
def test_a_thought_comes_in_many_shapes_and_counts_as_a_token(thought: dict[str, Any]) -> None:
    answer = Answer()
    answer.add(delta(**thought))
    assert answer.tokens == 1
    for event in (piece("42"), piece("", "stop")):
        answer.add(event)
    completion = answer.completion("m", "")
    assert (completion.thoughts, completion.text, answer.tokens) == ("hm", "42", 2)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
async def test_an_answer_that_ended_within_its_thoughts_says_how_many_tokens_and_what_to_raise(field: str) -> None:
    reply = events(*[delta(**{field: "step "})] * 40, delta("length"), usage(10, 2000))
    (result,) = await asked(CHAT, reply=reply)
    assert result["isError"]
    text, thoughts = wire_texts(result)
    assert text == (
        "The model m spent 2000 tokens on thinking and was cut off before it came to its answer. To let it finish, "
        "raise max_tokens of the model (models[].max_tokens, or LOCAL_LLM_MAX_TOKENS over stdio)."
    )
    assert thoughts.startswith("[The model's thinking, which is not an answer:]")


@pytest.mark.parametrize(
    ("pieces", "finish"),
    [
        ([piece("<think>\nfirst "), piece("I look at")], "length"),
        ([piece("<think>\nhm\n</think>\n\n")], "stop"),
        ([delta(reasoning="The answer is 4.")], "stop"),
        ([delta(reasoning="hm"), piece("\n\n")], "stop"),
        ([delta(reasoning="hm")], "abort"),
    ],
)
async def test_thoughts_are_never_passed_off_as_the_answer(pieces: list[dict[str, Any]], finish: str) -> None:
    (result,) = await asked(CHAT, reply=events(*pieces, delta(finish), usage(10, 9)))
    assert result["isError"]
    text, thoughts = wire_texts(result)
    assert "9 tokens on thinking" in text
    assert thoughts.startswith("[The model's thinking, which is not an answer:]")


async def test_thoughts_that_the_engine_keeps_to_itself_are_named_by_its_count() -> None:
    last = usage(10, 500, completion_tokens_details={"reasoning_tokens": 500})
    (result,) = await asked(CHAT, reply=events(delta("length", content=""), last))
    (text,) = wire_texts(result)
    assert "spent 500 tokens on thinking" in text


async def test_thoughts_count_where_the_engine_counts_nothing() -> None:
    reply = events(*[delta(reasoning="step ")] * 40, delta("length"), usage(0, 0))
    (result,) = await asked(CHAT, reply=reply)
    text, thoughts = wire_texts(result)
    assert "spent 40 tokens on thinking" in text
    assert thoughts.startswith("[The model's thinking")


async def test_a_cut_answer_says_how_much_of_it_was_thinking() -> None:
    reply = events(delta(reasoning="x" * 90), piece("y" * 10), delta("length"), usage(10, 100))
    (result,) = await asked(CHAT, reply=reply)
    answer, note = wire_texts(result)
    assert answer == "y" * 10
    assert note.startswith("[Cut off after 100 tokens, 90 of them thinking.")
    assert result["_meta"]["thinking_tokens"] == 90


async def test_thinking_is_progress_and_the_first_token() -> None:
    told: list[int] = []
    reply = events(*[delta(reasoning="s ")] * 5, done=False)
    hold = threading.Event()
    call = Call("chat", {"message": "hi"}, progress=told.append)
    (result,) = await asked(call, reply=FakeEngine(reply, hold=hold), timeout_s=1)
    assert result["isError"]
    text, thoughts = wire_texts(result)
    assert text.startswith("The model m was still thinking when the 1 s for one call were over (5 tokens of thoughts).")
    assert "OPENAI_TIMEOUT" in text
    assert "s s s" in thoughts
    assert told
    assert told[-1] == 5


async def test_what_was_thought_before_an_engine_died_is_not_shown_as_received() -> None:
    (result,) = await asked(CHAT, reply=events(delta(reasoning="secretly"), done=False))
    (text,) = wire_texts(result)
    assert "It was still thinking" in text
    assert "secretly" not in text


async def test_thoughts_do_not_go_back_to_the_model_and_do_not_count_as_its_answer_to_others() -> None:
    engine = FakeEngine(events(piece("<think>hm</think>42"), delta("stop")))
    first, second = await asked(CHAT, CHAT, reply=engine)
    assert [wire_texts(result) for result in (first, second)] == [["42"], ["42"]]
    assert second["_meta"]["cached"]


class TestLongestAnswer:
    """A setting per model and per tool."""

    @pytest.mark.parametrize(
        ("model", "tools", "tool", "sent"),
        [
            (None, {}, "chat", 2000),
            (None, {}, "code_generation", 3000),
            (None, {}, "review_code", 3000),
            (9000, {}, "chat", 9000),
            (9000, {}, "review_code", 9000),
            (9000, {"chat": 700}, "chat", 700),
            (9000, {"chat": 700}, "code_generation", 9000),
            (None, {"code_generation": 700, "review_code": 800}, "code_generation", 700),
            (None, {"code_generation": 700, "review_code": 800}, "review_code", 800),
        ],
    )
    async def test_the_narrower_setting_wins(
        self, model: int | None, tools: dict[str, int], tool: str, sent: int
    ) -> None:
        engine = FakeEngine(events(piece("x", "stop")))
        argument = {"chat": "message", "code_generation": "task", "review_code": "code"}[tool]
        await asked(Call(tool, {argument: "hi"}), reply=engine, engine={"max_tokens": model}, max_tokens=tools)
        assert engine.requests[0]["max_tokens"] == sent

    async def test_a_tool_of_the_operator_has_its_own(self, tmp_path: Path) -> None:
        (tmp_path / "t.yml").write_text("{name: short, description: x, template: hi, max_tokens: 50}")
        for tools, sent in (({}, 50), ({"short": 60}, 60)):
            engine = FakeEngine(events(piece("x"), delta("length")))
            (result,) = await asked(
                Call("short", {}), reply=engine, engine={"max_tokens": 9000}, max_tokens=tools, tools_dir=tmp_path
            )
            assert engine.requests[0]["max_tokens"] == sent
            assert "raise max_tokens of this tool" in wire_texts(result)[1]

    def test_it_is_a_setting_of_the_file_and_of_the_environment(self, tmp_path: Path) -> None:
        file = tmp_path / "config.yml"
        file.write_text(
            "models: [{name: m, url: 'http://e/v1', context: 4096, max_tokens: 9000}]\nmax_tokens: {chat: 700}\n"
            "developers: []\n"
        )
        settings = config.from_file(file)
        assert (settings.engines[0].max_tokens, settings.max_tokens) == (9000, {"chat": 700})
        assert config.from_environment({"LOCAL_LLM_MAX_TOKENS": "9000"}).engines[0].max_tokens == 9000

    @pytest.mark.parametrize("value", ["0", "many", "-5", "1000001", "1e3"])
    def test_a_wrong_one_is_told(self, value: str) -> None:
        with pytest.raises(ConfigError, match=r"LOCAL_LLM_MAX_TOKENS: found .*; wanted whole tokens from 1 to 1000000"):
            config.from_environment({"LOCAL_LLM_MAX_TOKENS": value})

    def test_a_tool_that_asks_no_model_has_none(self) -> None:
        settings = config.Settings(engines=(config.Engine("m", "http://e/v1"),), max_tokens={"list_models": 5})
        with pytest.raises(ConfigError, match="max_tokens: found list_models; tools that ask a model are: chat, code_"):
            Toolbox(settings)


async def test_a_model_that_thinks_longer_than_the_answer_it_may_give_answers_with_a_longer_one() -> None:
    """The remedy that the error names is one."""
    short = events(delta(reasoning="hm"), delta("length"), usage(1, 2000))
    engine = ScriptedEngine(short, events(delta(reasoning="hm"), piece("42", "stop"), usage(1, 3000)))
    (refused,) = await asked(CHAT, reply=engine)
    (answered,) = await asked(CHAT, reply=engine, engine={"max_tokens": 8000})
    assert "LOCAL_LLM_MAX_TOKENS" in wire_texts(refused)[0]
    assert wire_texts(answered) == ["42"]
    assert [request["max_tokens"] for request in engine.requests] == [2000, 8000]
