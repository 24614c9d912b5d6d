"""Rules of which model a request goes to, and the guide's own."""

from __future__ import annotations

from dataclasses import dataclass

# The guide's rules: code → coder, maths → general. Keywords are whole words where the script has words.
# fmt: off
CODE = (
    "code", "function", "class", "method", "bug", "debug", "refactor", "compile", "algorithm", "script", "api", "regex",
    "sql", "python", "javascript", "typescript", "java", "golang", "rust", "c++", "bash",
    "代码", "函数", "编程", "程序", "脚本", "算法", "调试", "重构", "编译", "接口", "正则", "变量", "报错",
)
MATHS = (
    "math", "maths", "mathematics", "calculate", "equation", "integral", "derivative", "probability", "statistics",
    "theorem", "proof", "matrix", "algebra", "geometry",
    "数学", "计算", "方程", "积分", "导数", "概率", "统计", "定理", "证明", "矩阵", "代数", "几何",
)
# fmt: on


@dataclass(frozen=True)
class Rule:
    """Texts that fit go to a model.

    Args:
        model: the model's name; None: the first model with this strength.
        good_at: the strength that is wanted; None: `model` is named.
        keywords: words or parts of Chinese text, any of which fits, upper or lower case.
        patterns: regular expressions, any of which fits, upper or lower case.
    """

    model: str | None = None
    good_at: str | None = None
    keywords: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()


GUIDE_RULES = (
    Rule(good_at="code", keywords=CODE, patterns=("```",)),
    Rule(good_at="maths", keywords=MATHS),
    Rule(good_at="general", keywords=MATHS),
)
