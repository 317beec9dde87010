"""Words of all scripts in what tokens spell."""

from __future__ import annotations

import pytest
from clip_like import encode, piece
from hypothesis import given
from hypothesis import strategies as st

from lib_ccn.prompt import Sought, find_word, tokenize, why_missing, words

FIELD = "赤い星 over a field"
CHINESE = "红色的星星，在田野上。"  # noqa: RUF001
THAI = "ดาวสีแดงเหนือทุ่ง"
KOREAN = "빨간 별이 들판 위에, 고양이가 있다"

FOUND = [
    (FIELD, ["星", "赤い星", "赤い", "い星", "い星 over", "field", "星。"]),
    ("(赤い:1.2)星", ["赤い星", "星", "赤"]),
    ("赤い 星", ["赤い星", "赤い 星"]),
    ("赤いstar星", ["star", "赤い", "赤いstar", "星"]),
    ("東京のネオンサイン", ["ネオンサイン", "サイン", "東京", "の"]),
    (CHINESE, ["星星", "红色", "田野", "红色的星星，在"]),  # noqa: RUF001
    (THAI, ["ดาว", "สี", "แดง", "ทุ่ง", THAI]),
    (KOREAN, ["별", "별이", "빨간 별", "고양이", "고양이가", "들판 위"]),
    ("star가 있다", ["star", "star가"]),
    ("नमस्ते दुनिया", ["नमस्ते", "दुनिया", "नमस्ते दुनिया"]),
    ("سلام بِر جهان", ["سلام", "جهان", "بِر"]),
    ("a 🌟🌙 sky, 👩‍🚀 and ❤️!", ["🌟", "🌙", "🌟🌙", "👩‍🚀", "❤️"]),
    ("star \\(red\\), well-lit", ["\\(red\\)", "star \\(red\\)", "well-lit", "lit"]),
    ("ein Leuchtturm, größer", ["leuchtturm", "GRÖSSER".replace("SS", "ß"), "Leuchtturm, größer"]),
    ("e\u0301toile café", ["étoile", "cafe\u0301"]),
    ("a man's hat", ["man", "man's", "hat"]),
]

ABSENT = [
    (FIELD, ["月", "星い", "赤星", "fiel", "eld"]),
    (CHINESE, ["月亮", "星田"]),
    (THAI, ["แมว", "ส", "ท"]),
    (KOREAN, ["이", "가", "들", "간", "고양이가있다"]),
    ("이별, 별장, 샛별빛", ["별"]),
    ("नमस्ते", ["नमस", "मस्ते"]),
    ("a 🌟 sky, 👩‍🚀 and ❤️!", ["👩", "🚀", "❤", "🌙"]),
    ("starfish, superstar, red-starred", ["star"]),
    ("Leuchtturm", ["Leucht", "turm", "Turm"]),
    ("red star", ["redstar", "red, star", "sta", "tar"]),
    ("redstar", ["red star", "red", "star"]),
    ("a man's hat", ["s", "mans"]),
]


def read(prompt):
    return tokenize(prompt, encode, decode_piece=piece)


@pytest.mark.parametrize(("prompt", "searched"), FOUND)
def test_words_are_found_in_every_script(prompt, searched):
    for word in searched:
        sought = Sought.of(word, encode)
        assert find_word(read(prompt), sought.ids), why_missing(read(prompt), sought)


@pytest.mark.parametrize(("prompt", "searched"), ABSENT)
def test_parts_of_words_are_not_found(prompt, searched):
    for word in searched:
        sought = Sought.of(word, encode)
        assert find_word(read(prompt), sought.ids) == [], word
        assert "is not in the prompt" in why_missing(read(prompt), sought)


def test_the_positions_are_those_of_the_letters():
    # Three tokens a letter: 赤 い 星, then over a field.
    assert len(encode("赤い星")) == 9
    assert find_word(read(FIELD), encode("星")) == [7, 8, 9]
    assert find_word(read(FIELD), encode("い星")) == [4, 5, 6, 7, 8, 9]
    assert find_word(read(FIELD), encode("over")) == [10]
    assert find_word(read("星と星"), encode("星")) == [1, 2, 3, 7, 8, 9]
    # A Korean word without its particle, and a word across chunks.
    assert find_word(read("별이"), encode("별")) == [1, 2, 3]
    assert find_word(read("a " * 74 + "赤い星"), encode("赤")) == [75, 78, 79]


def test_a_token_of_two_letters_belongs_to_both():
    names = {1: "æĺŁæľĪ", 2: "æµ·</w>", 3: "æĺŁ</w>", 4: "æľĪ</w>", 5: "æĺŁæ", 6: "ľĪ</w>"}
    whole = tokenize("", lambda text: [1, 2] if not text else [0], decode_piece=names.get)
    assert find_word(whole, [3]) == find_word(whole, [4]) == [1]
    assert find_word(whole, [2]) == [2]
    assert [word.text for word in words(whole)] == ["星月海"]
    torn = tokenize("", lambda text: [5, 6] if not text else [0], decode_piece=names.get)
    assert find_word(torn, [3]) == [1]
    assert find_word(torn, [4]) == [1, 2]


def test_a_letter_that_the_prompts_end_cuts_in_two():
    ids = encode("赤い星")
    for kept in range(1, 9):
        cut = tokenize("", lambda text, k=kept: ids[:k] if not text else [0], decode_piece=piece)
        assert bool(find_word(cut, encode("赤"))) is (kept >= 3)
        assert bool(find_word(cut, encode("い"))) is (kept >= 6)
        assert find_word(cut, encode("星")) == []


WORDS = [
    (FIELD, ["赤", "星", "field"]),
    ("赤い星と猫", ["赤", "星", "猫"]),
    ("東京のネオンサイン、ひまわり", ["東京", "ネオンサイン", "ひまわり"]),
    (CHINESE, ["红", "色", "星", "在田野上"]),
    ("宇宙飛行士が星空を見上げている", ["宇", "宙", "飛", "行", "士", "星空", "見上", "げている"]),
    (KOREAN, ["빨간", "별이", "들판", "위에", "고양이가", "있다"]),
    ("a 🌟🌙 sky, 👩‍🚀 and ❤️!", ["🌟", "🌙", "sky", "👩‍🚀", "❤️"]),
    ("नमस् star", ["नमस्", "star"]),
    ("0\u17b4 star, \u0301", ["star"]),
    ("Leuchtturm, größer", ["leuchtturm", "größer"]),
]


@pytest.mark.parametrize(("prompt", "expected"), WORDS)
def test_words_for_the_automatic_choice(prompt, expected):
    assert [word.text for word in words(read(prompt))] == expected


@pytest.mark.parametrize(
    "prompt", [THAI, CHINESE * 3, "きれいなほしがひかるよるのうみ", "ຂ້ອຍມັກດາວສີແດງ"]
)
def test_a_sentence_is_not_offered_as_one_word(prompt):
    for word in words(read(prompt)):
        assert len(word.text) < 6
        assert set(word.positions) <= set(find_word(read(prompt), encode(word.text)))


@given(
    st.text(st.sampled_from("赤い星スター별이ดสี starred-!🌟\u0301\u200dé(),"), max_size=25),
    st.data(),
)
def test_whatever_is_found_is_what_was_looked_for(prompt, data):
    """Every part of a prompt that is found stands there, and a word alone is found as a whole."""
    tokenized = tokenize(prompt, encode, decode_piece=piece, weighted=False)
    start = data.draw(st.integers(0, len(prompt)))
    part = prompt[start : start + data.draw(st.integers(0, 8))]
    ids = encode(part)
    found = find_word(tokenized, ids)
    positions = [token.position for token in tokenized.tokens]
    assert set(found) <= set(positions)
    assert bool(found) <= bool(ids)
    alone = tokenize(part, encode, decode_piece=piece, weighted=False)
    if ids and part[:1].isalnum():
        assert find_word(alone, ids) == [token.position for token in alone.tokens]
