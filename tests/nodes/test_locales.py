# SPDX-License-Identifier: GPL-3.0-or-later
"""Names, tooltips and help of the nodes, in English and Chinese: whole, up to date, and served."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import pytest

from demo.build_locales import HELP, LOCALES, node_definitions

LANGUAGES = ("en", "zh")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e-\d+)?")
#: Chinese keeps these as they are.
AS_IS = {"CLIP", "VAE", "Latent", "DCO beta", "Min-SNR gamma"}


def definitions(language: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))


def texts(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, str):
            yield f"{path}{key}", value
        else:
            yield from texts(value, f"{path}{key}.")


ENGLISH, TRANSLATED = (dict(texts(definitions(language))) for language in LANGUAGES)


def page(node: str, language: str) -> str:
    return (HELP / node / f"{language}.md").read_text("utf-8")


def numbers(text: str) -> set[str]:
    return set(NUMBER.findall(text))


def test_english_is_what_the_nodes_say(server) -> None:
    assert definitions("en") == node_definitions(server.object_info()), "run demo/build_locales.py"


def test_nothing_is_missing_or_left_over_in_chinese() -> None:
    assert TRANSLATED.keys() == ENGLISH.keys()


@pytest.mark.parametrize("path", ENGLISH)
def test_chinese_says_the_same(path) -> None:
    """Words can only be read; that it speaks Chinese and of the same numbers can be told."""
    english, chinese = ENGLISH[path], TRANSLATED[path]
    assert CHINESE.search(chinese) or (path.endswith(".name") and chinese in AS_IS)
    assert numbers(chinese) >= numbers(english)


def test_the_front_end_reads_no_syntax_into_them() -> None:
    """Its messages have placeholders, links and plurals: ``{x}``, ``@:x``, ``a | b``."""
    assert not [p for text in (ENGLISH, TRANSLATED) for p, value in text.items() if re.search(r"[{}@|]", value)]


def test_chinese_names_the_same_choices(server) -> None:
    """Choices are ids and stay as they are; where the English tooltip explains one, so does the Chinese."""
    compared = 0
    for node, info in node_choices(server.object_info()).items():
        for name, choices in info.items():
            key = f"{node}.inputs.{name}.tooltip"
            for choice in choices:
                if re.search(rf"(?<![\w+]){re.escape(choice)}(?::| =)", ENGLISH[key]):
                    compared += 1
                    assert choice in TRANSLATED[key], (key, choice)
    assert compared > 15


def node_choices(object_info: dict[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Node -> combo -> choices, of combos whose choices are ours."""
    return {
        node: {
            name: [c if isinstance(c, str) else c["key"] for c in spec[1]["options"]]
            for name, spec in info["input"]["required"].items()
            if spec[0] in ("COMBO", "COMFY_DYNAMICCOMBO_V3") and name != "adapter_name"
        }
        for node, info in object_info.items()
        if node.startswith("SODA")
    }


def test_the_server_serves_both(server) -> None:
    served = json.load(urlopen(f"{server.url}/i18n"))
    for language in LANGUAGES:
        assert {k: v for k, v in served[language]["nodeDefs"].items() if k.startswith("SODA")} == definitions(language)


# ---------------------------------------------------------------------------------------------------- help pages


@pytest.mark.parametrize("node", definitions("en"))
def test_help_is_found_at_the_first_request(server, node) -> None:
    """The front end asks for the user's language, and only then for the page without one."""
    for path, source in ((f"{node}/en.md", "en"), (f"{node}/zh.md", "zh"), (f"{node}.md", "en")):
        with urlopen(f"{server.url}/extensions/soda/docs/{path}") as answer:
            assert answer.read().decode() == page(node, source), (
                f"{node}.md is a copy: edit {node}/en.md, then run demo/build_locales.py"
            )


def test_there_is_help_for_these_nodes_only() -> None:
    nodes = definitions("en").keys()
    assert {p.relative_to(HELP).as_posix() for p in HELP.rglob("*.md")} == {
        f"{node}{end}" for node in nodes for end in (".md", "/en.md", "/zh.md")
    }


@pytest.mark.parametrize("node", definitions("en"))
def test_chinese_help_covers_the_english(node) -> None:
    english, chinese = page(node, "en"), page(node, "zh")
    assert english.startswith(f"# {ENGLISH[f'{node}.display_name']}\n") and len(english) > 300
    assert chinese.startswith(f"# {TRANSLATED[f'{node}.display_name']}\n") and len(CHINESE.findall(chinese)) > 100
    for mark in (r"^#+ ", r"^ *- ", r"^\d\. "):
        assert len(re.findall(mark, chinese, re.M)) == len(re.findall(mark, english, re.M)), mark
    inputs = definitions("en")[node]["inputs"]
    words = set(re.findall(r"`([\w./-]+)`", english)) - {"sub-folder/name"}
    words |= {word for word in re.findall(r"\*\*(\w+)\*\*", english) if word in inputs}
    assert not [w for w in words if f"`{w}`" not in chinese]
    assert numbers(chinese) >= numbers(english)


@pytest.mark.parametrize("node", definitions("en"))
def test_chinese_help_names_inputs_as_the_node_does(node) -> None:
    inputs = definitions("zh")[node]["inputs"]
    named = re.findall(r"\*\*([^*\n]+)\*\*（`(\w+)`", page(node, "zh"))
    assert named
    for label, name in named:
        if name in inputs:
            assert label == inputs[name]["name"], name


def words(language: str) -> dict[str, str]:
    return json.loads((LOCALES / language / "main.json").read_text("utf-8"))["soda"]


def test_the_words_of_the_browser_are_all_there_and_all_used() -> None:
    english, chinese = words("en"), words("zh")
    assert english.keys() == chinese.keys()
    holes = re.compile(r"\{\w+\}")
    for key, text in english.items():
        assert set(holes.findall(text)) == set(holes.findall(chinese[key])), key
        assert CHINESE.search(chinese[key]), key
    code = "".join(path.read_text("utf-8") for path in (HELP.parent).rglob("*.js"))
    used = set(re.findall(r'say\(\s*"(\w+)"', code))
    assert used <= english.keys()
    computed = re.compile(r"status_\w+|note_\w+|(\w+_help)|validation|mean|loss|rotation|shift|schedule")
    assert not [key for key in english.keys() - used if not computed.fullmatch(key)]
