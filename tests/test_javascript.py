"""The page's JavaScript: its own tests, run by node, and that it reads prompts as Python does."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from lib_ccn.layers import LAYER_LIMIT
from lib_ccn.prompt import (
    STOP_WORDS,
    clean_word,
    find_word,
    parse_weights,
    strip_weights,
    tokenize,
    words,
)
from lib_ccn.settings import UNIT_LIMIT, WORD_LIMIT, SettingsError, fields
from lib_ccn.spelling import PARTICLES, script

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests" / "javascript"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(
    NODE is None, reason="node is not installed: the page's JavaScript was NOT tested"
)

_WORDS = "red star Star STAR moon a the in of with not man's dog’s well-lit 3d 1girl"  # noqa: RUF001
_OTHERS = "42 é bär 猫 星 ★ 🌟 , . ! ; : & / _ BREAK BREAK (BREAK) ANDY üBREAK"
_SYNTAX = r"( ) ( ) [ ] (( )) (red (moon:1.2) :1.3) :0.5 \( \) \[ \\ \\"
PIECES = f"{_WORDS} {_OTHERS} {_SYNTAX}".split()


def ask(script: str, data: Any = None) -> Any:
    """What `script` leaves in `answer`, with `data` and the scripts' namespace `ccn` at hand."""
    program = f"""
        const {{ ccn }} = await import({json.dumps((TESTS / "load.mjs").as_uri())});
        const data = JSON.parse((await import("node:fs")).readFileSync(0, "utf8"));
        const {{ layers, prompt, selection }} = ccn;
        let answer;
        {script}
        process.stdout.write(JSON.stringify(answer));
    """
    done = subprocess.run(
        [str(NODE), "--input-type=module", "-e", program],
        input=json.dumps(data).encode(),
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def random_prompts(count: int) -> list[str]:
    chance = random.Random(5)
    return [
        chance.choice([" ", " ", ""]).join(chance.choices(PIECES, k=chance.randrange(20)))
        for _ in range(count)
    ]


class Pieces:
    """Splits text into words as CLIP does, and those into characters."""

    def __init__(self) -> None:
        tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
        splits = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
        self.normalizer = tokenizers.normalizers.Sequence(
            [tokenizers.normalizers.NFC(), tokenizers.normalizers.Lowercase()]
        )
        self.splitter = tokenizers.pre_tokenizers.Split(
            tokenizers.Regex(splits), behavior="removed", invert=True
        )
        self.known: list[str] = []

    def encode(self, text: str) -> list[int]:
        ids = []
        for word, _ in self.splitter.pre_tokenize_str(self.normalizer.normalize_str(text)):
            for piece in [*word[:-1], word[-1] + "</w>"]:
                if piece not in self.known:
                    self.known.append(piece)
                ids.append(self.known.index(piece))
        return ids

    def piece(self, token: int) -> str:
        return self.known[token]


def test_node_runs_the_tests_of_the_scripts():
    files = sorted(str(path) for path in TESTS.glob("*.test.mjs"))
    assert files
    done = subprocess.run(
        [str(NODE), "--test", *files], capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout.decode()[-6000:]


def test_both_languages_have_the_same_constants():
    names = "[...prompt.STOP_WORDS], selection.PARTICLES, selection.WORD_LIMIT"
    stop_words, particles, limit = ask(f"answer = [{names}];")
    assert (set(stop_words), set(particles), limit) == (STOP_WORDS, PARTICLES, WORD_LIMIT)
    names = "layers.SOURCES, layers.LAYER_LIMIT, layers.UNIT_LIMIT"
    sources, *limits = ask(f"answer = [{names}];")
    assert tuple(sources) == fields()["mask_source"].choices
    assert limits == [LAYER_LIMIT, UNIT_LIMIT]


def test_both_languages_know_the_same_scripts_without_spaces():
    """Of the letters that Python knows, but for signs that hardly anybody writes."""
    rare = ("HENTAIGANA", "MODIFIER", "VERTICAL", "MASU", "CARON", "OLD CHINESE")
    known = [chr(i) for i in range(0x20000) if unicodedata.category(chr(i)).startswith("L")]
    known = [char for char in known if not unicodedata.name(char, "").startswith(rare)]
    got = ask("answer = data.map((c) => prompt.UNSPACED_LETTER.test(c));", known)
    differing = [
        unicodedata.name(char)
        for char, unspaced in zip(known, got, strict=True)
        if unspaced is not bool(script(char))
    ]
    assert differing == []


def test_both_languages_read_weights_alike():
    prompts = random_prompts(1500)
    got = ask("answer = data.map((p) => [prompt.parseWeights(p), prompt.cleanWord(p)]);", prompts)
    for text, (segments, clean) in zip(prompts, got, strict=True):
        expected = parse_weights(text)
        assert [s["text"] for s in segments] == [s.text for s in expected], text
        assert [s["weight"] for s in segments] == pytest.approx([s.weight for s in expected]), text
        assert clean == clean_word(text), text


def test_both_languages_find_the_same_words():
    """For prompts that a host leaves as they are; chips show each place of a word once more."""
    pieces = Pieces()
    prompts = [
        p for p in random_prompts(1500) if strip_weights(p) == p.strip() == p and ":" not in p
    ]
    # Only a browser has dictionaries for what is written without blanks.
    together = re.compile("[猫星][猫星]")
    prompts = [prompt for prompt in prompts if not together.search(prompt)]
    assert len(prompts) > 100
    got = ask("answer = data.map((p) => selection.wordsOf(p).chips.map((c) => c.text));", prompts)
    for text, chips in zip(prompts, got, strict=True):
        tokenized = tokenize(text, pieces.encode, decode_piece=pieces.piece)
        # What is read as syntax when it stands in the field, such as BREAK, cannot be chosen.
        found = [w.text for w in words(tokenized)]
        expected = [w for w in found if clean_word(w) == w and w != "break"]
        assert list(dict.fromkeys(chip.lower() for chip in chips)) == expected, text


def test_both_languages_agree_on_what_is_missing():
    pieces = Pieces()
    chance = random.Random(6)
    # Prompt editing, which the host resolves before Python sees the prompt, stays out.
    prompts = [
        p for p in random_prompts(3000) if "[" not in p and not p.endswith((":0.5", ":1.3)"))
    ]
    cases = []
    for text in prompts:
        plain = strip_weights(text).split()
        start = chance.randrange(len(plain) + 1)
        phrase = " ".join(plain[start : start + chance.randrange(1, 4)])
        cases.append([text, chance.choice([phrase, phrase.upper(), phrase + " moon", "star"])])
    got = ask("answer = data.map(([p, w]) => selection.isMissing(selection.wordsOf(p), w));", cases)
    seen = set()
    for (text, word), missing in zip(cases, got, strict=True):
        ids = pieces.encode(clean_word(word))
        found = find_word(tokenize(text, pieces.encode, decode_piece=pieces.piece), ids)
        assert missing is (bool(ids) and not found), (text, word)
        seen.add(missing)
    assert seen == {True, False}


_ENTRIES = (
    "0 1 12 120 star red%20star %2C %C3 %zz ( ) (silhouette) (all,) (image) (word) auto 50% a(b)"
)
_BRACKETS = (
    "(threshold 0.5)|(threshold 2)|(threshold)|(silhouette, threshold .3)|(no)|-1|,|,|;|, |  |"
)
_LAYER_PIECES = [*_ENTRIES.split(), *_BRACKETS.split("|")]


def random_layers(count: int) -> list[str]:
    chance = random.Random(7)
    loose = [" ".join(chance.choices(_LAYER_PIECES, k=chance.randrange(6))) for _ in range(count)]
    details = ["", "(silhouette)", "(all)", "(threshold 0.4)", "(word, threshold 1)"]
    for _ in range(count):
        entries = [
            f"{chance.randrange(6)} {chance.choice(['', 'star', 'red star', 'a%2C b'])} "
            f"{chance.choice(details)}"
            for _ in range(chance.randrange(1, 4))
        ]
        loose.append(chance.choice([",", ";", ", "]).join(entries))
    return loose


def test_both_languages_read_and_write_layers_alike():
    setting, texts = fields()["layers"], [*random_layers(400), ",".join(map(str, range(11)))]
    script = "const found = data.map(layers.parse);"
    got = ask(f"{script} answer = found.map((f) => [f, f && layers.write(f)]);", texts)
    seen = set()
    for text, (entries, written) in zip(texts, got, strict=True):
        try:
            expected = setting.accept("layers", text)
        except SettingsError:
            expected = None
        assert (entries is None) is (expected is None), text
        seen.add(expected is None)
        if expected is None:
            continue
        named = [(e["number"], e["word"], e["source"]) for e in entries]
        assert named == [(e.unit, e.word, e.mask_source) for e in expected], text
        assert setting.accept("layers", written) == expected, text
    assert seen == {True, False}


PROMPTS = [
    "赤い星 over a field",
    "红色的星星，在田野上。月亮",  # noqa: RUF001
    "東京のネオンサイン、ひまわり",
    "ดาวสีแดงเหนือทุ่ง and a star",
    "빨간 별이 들판 위에, 고양이가",
    "नमस्ते दुनिया",
    "a 🌟🌙 sky, 👩‍🚀 and 👩🏽!",
    "Leuchtturm über dem Meer, star\u200cfish",
    "(red:1.2) ral-chrome_v2 [moon], \\(big\\), well-lit",
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_chip_is_a_word_that_python_finds(prompt):
    pieces = Pieces()
    tokenized = tokenize(prompt, pieces.encode, decode_piece=pieces.piece)
    chips = ask("answer = selection.wordsOf(data).chips.map((c) => c.text);", prompt)
    assert len(chips) > 1
    for chip in chips:
        assert find_word(tokenized, pieces.encode(clean_word(chip))), chip


@pytest.mark.parametrize("prompt", PROMPTS)
def test_both_languages_find_the_same_parts_of_words(prompt):
    pieces = Pieces()
    tokenized = tokenize(prompt, pieces.encode, decode_piece=pieces.piece)
    plain = strip_weights(prompt)
    parts = [plain[i:j] for i in range(len(plain)) for j in range(i + 1, min(i + 7, len(plain)))]
    parts = [part for part in parts if clean_word(part) == part == part.strip()]
    cases = [[prompt, part] for part in parts if not _begins_oddly(part)]
    got = ask("answer = data.map(([p, w]) => selection.isMissing(selection.wordsOf(p), w));", cases)
    for (_, part), missing in zip(cases, got, strict=True):
        ids = pieces.encode(part)
        assert missing is (bool(ids) and not find_word(tokenized, ids)), part
    assert False in got


def _begins_oddly(part: str) -> bool:
    """With what no people begin a word, so that it does not matter what is made of it."""
    return part[0] in "\u200c\u200d" or unicodedata.category(part[0])[0] == "M"


def test_a_script_that_the_browser_cannot_read_would_be_noticed():
    for path in sorted((ROOT / "javascript").glob("*.js")):
        done = subprocess.run([str(NODE), "--check", str(path)], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        assert "innerHTML" not in path.read_text(encoding="utf-8")
