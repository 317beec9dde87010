"""From a foreground word to token positions, with a CLIP-style byte-level BPE."""

from __future__ import annotations

import re
import time

import pytest
import torch
from clip_like import TOKENIZER, encode, piece, pieces
from hypothesis import example, given
from hypothesis import strategies as st

from lib_ccn.prompt import (
    BOS,
    EOS,
    Segment,
    Sought,
    Token,
    TokenizedPrompt,
    clean_word,
    find_word,
    layout,
    parse_weights,
    strip_weights,
    tokenize,
    why_missing,
    with_names,
    words,
)


def read(prompt: str, **options) -> TokenizedPrompt:
    return tokenize(prompt, encode, decode_piece=piece, **options)


def find(prompt: str | TokenizedPrompt, word: str, **options) -> list[int]:
    tokenized = read(prompt, **options) if isinstance(prompt, str) else prompt
    return find_word(tokenized, encode(clean_word(word)))


def shown(tokenized: TokenizedPrompt) -> list[str]:
    """The pieces by position; what the UNet's cross-attention columns stand for."""
    row = [""] * tokenized.length
    for token in tokenized.tokens:
        row[token.position] = token.piece or ""
    return row


def test_the_tokenizer_is_like_clip():
    assert pieces("A Red STAR!") == ["a</w>", "red</w>", "star</w>", "!</w>"]
    assert pieces("lighthouse") == ["light", "house</w>"]
    assert pieces("é") == ["Ã©</w>"]
    assert len(encode("★")) == 3


# Weights


@pytest.mark.parametrize(
    ("prompt", "segments"),
    [
        ("", [("", 1)]),
        ("a star", [("a star", 1)]),
        ("a (star)", [("a ", 1), ("star", 1.1)]),
        ("((star))", [("star", 1.21)]),
        ("[star]", [("star", 1 / 1.1)]),
        ("(red star:1.2) b", [("red star", 1.2), (" b", 1)]),
        ("(a: 0.5 )", [("a", 0.5)]),
        ("(a:-.5)", [("a", -0.5)]),
        ("(a (b:2) c:3)", [("a ", 3), ("b", 6), (" c", 3)]),
        ("([a])", [("a", 1)]),
        ("(a", [("a", 1.1)]),
        ("a (b [c", [("a ", 1), ("b ", 1.1), ("c", 1)]),
        ("a) b]", [("a) b]", 1)]),
        ("a:1.2)", [("a:1.2)", 1)]),
        ("[a:1.2]", [("a:1.2", 1 / 1.1)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        (r"star \(red\)", [("star (red)", 1)]),
        (r"(\(a\):1.2)", [("(a)", 1.2)]),
        (r"\[a\] \\ \b", [(r"[a] \ b", 1)]),
        ("a BREAK b", [("a", 1), ("BREAK", -1), ("b", 1)]),
        ("a\nBREAK\n(b:1.5)", [("a", 1), ("BREAK", -1), ("", 1), ("b", 1.5)]),
        ("BREAKS aBREAK", [("BREAKS aBREAK", 1)]),
        ("(a BREAK b:2)", [("a", 2), ("BREAK", -2), ("b", 2)]),
    ],
)
def test_weights(prompt, segments):
    got = parse_weights(prompt)
    assert [s.text for s in got] == [text for text, _ in segments]
    assert [s.weight for s in got] == pytest.approx([weight for _, weight in segments])


def test_a_break_is_one_outside_brackets_only():
    assert [s.is_break for s in parse_weights("a BREAK b")] == [False, True, False]
    assert not any(s.is_break for s in parse_weights("(a BREAK b:1.3)"))
    assert not Segment("break", -1).is_break


@given(st.text() | st.text(r"()[]\: .129-+aBREK" "\n"))
@example("(" * 50 + "a" + ":1.1)" * 60)
@example("(a:" + "1" * 5000)
@example("BREAK" * 3)
def test_any_text_is_parsed_and_its_letters_survive(text):
    segments = parse_weights(text)
    assert segments
    letters = re.sub(r"[()\[\]\\:.\d+\-\s]", "", text)
    assert re.sub(r"[()\[\]\\:.\d+\-\s]", "", "".join(s.text for s in segments)) == letters
    assert isinstance(strip_weights(text), str)


@given(st.text(st.characters(exclude_characters="()[]\\")).filter(lambda t: "BREAK" not in t))
def test_plain_text_is_left_as_it_is(text):
    assert strip_weights(text) == text


@pytest.mark.parametrize(
    "prompt", [" " * 10**5, "(a:" + "1" * 10**5, "(a" * 2000, ": " * 20000, "\\" * 10**5]
)
def test_no_prompt_takes_long(prompt):
    start = time.perf_counter()
    parse_weights(prompt)
    assert time.perf_counter() - start < 5


def test_strip_weights():
    assert strip_weights("a ((red) star:1.2) BREAK [over] \\(sea\\)") == "a red star over (sea)"


# Positions


def test_positions_of_one_chunk():
    tokenized = read("a red star over the sea")
    assert shown(tokenized)[:8] == [
        "",
        "a</w>",
        "red</w>",
        "star</w>",
        "over</w>",
        "the</w>",
        "sea</w>",
        "",
    ]
    assert (tokenized.chunks, tokenized.length) == (1, 77)
    assert find(tokenized, "star") == [3]
    assert find(tokenized, "red star") == [2, 3]


def test_an_empty_prompt_is_one_chunk():
    tokenized = read("")
    assert tokenized == TokenizedPrompt(())
    assert tokenized.length == 77
    assert find(tokenized, "star") == []
    assert words(tokenized) == []


@pytest.mark.parametrize(
    "prompt",
    [
        "a (red star:1.2) over a field",
        "a ((red star)) over a field",
        "a [red star] over a field",
        "a red (star:1.3) over a field",
        "a (red (star:1.3):0.9) over a field",
        "a (red star over a field",
        "A RED STAR over a field",
    ],
)
def test_weights_do_not_move_tokens(prompt):
    assert find(prompt, "red star") == [2, 3]
    assert [t.id for t in read(prompt).tokens] == encode("a red star over a field")


def test_literal_brackets_are_tokens():
    assert find(r"a \(red\) star", "star") == [5]
    assert find("a (red) star", "star", weighted=False, max_chunks=1) == [5]


def test_break_begins_a_chunk():
    tokenized = read("red star BREAK blue sea BREAK star")
    assert tokenized.chunks == 3
    assert find(tokenized, "star") == [2, 2 * 77 + 1]
    assert find(tokenized, "blue sea") == [78, 79]
    assert read("BREAK star").tokens[0].position == 78
    assert read("star BREAK").chunks == 1


def test_long_prompts_fill_chunk_after_chunk():
    tokenized = read("a " * 80 + "star")
    assert tokenized.chunks == 2
    assert find(tokenized, "star") == [77 + 1 + 5]
    assert find("a " * 75 + "star", "star") == [78]
    assert find("a " * 74 + "star", "star") == [75]
    assert read("a " * 150).chunks == 2


def test_a_comma_near_the_end_of_a_chunk_keeps_a_phrase_together():
    prompt = "a " * 70 + ", red blue green star sea"  # the chunk is full before "sea"
    tokenized = read(prompt)
    assert find(tokenized, "red blue green star sea") == [78, 79, 80, 81, 82]
    assert shown(tokenized)[71] == ",</w>"
    assert shown(tokenized)[72:78] == [""] * 6
    assert find(prompt, "sea", backtrack=3) == [78]
    assert find(prompt, "red", backtrack=0) == [72]


def test_a_comma_too_far_back_moves_nothing():
    prompt = "a " * 54 + "," + " a" * 20 + " star"
    assert find(prompt, "star") == [78]
    prompt = "a " * 55 + "," + " a" * 19 + " star"
    assert find(prompt, "star") == [78 + 19]


def test_a_word_and_a_phrase_across_a_boundary():
    tokenized = read("a " * 74 + "lighthouse")
    assert find(tokenized, "lighthouse") == [75, 78]
    assert find("a " * 74 + "red star", "red star") == [75, 78]


def test_a_pipeline_reads_75_tokens_literally():
    options = {"weighted": False, "max_chunks": 1}
    prompt = "a " * 60 + "," + " red" * 14 + " star blue"
    tokenized = read(prompt, **options)
    assert tokenized.chunks == 1
    assert [t.id for t in tokenized.tokens] == encode(prompt)[:75]
    assert [t.position for t in tokenized.tokens] == list(range(1, 76))
    assert list(tokenized.dropped) == encode(prompt)[75:]
    assert find(tokenized, "star") == []


@given(
    st.lists(st.sampled_from(["a", "red", "lighthouse", ",", "BREAK", "(sea:1.2)"]), max_size=200),
    st.sampled_from([None, 1, 2]),
)
def test_no_token_is_lost_and_none_sits_on_bos_or_eos(parts, max_chunks):
    tokenized = read(" ".join(parts), max_chunks=max_chunks)
    kept = [t.id for t in tokenized.tokens]
    plain = [i for part in parts if part != "BREAK" for i in encode(strip_weights(part))]
    assert kept + list(tokenized.dropped) == plain
    positions = [t.position for t in tokenized.tokens]
    assert positions == sorted(set(positions))
    assert all(1 <= p % 77 <= 75 for p in positions)
    assert all(p < tokenized.length for p in positions)
    if max_chunks:
        assert tokenized.chunks <= max_chunks


def test_layout_takes_what_hosts_have():
    red, star = encode("red star")
    expected = TokenizedPrompt((Token(red, 1), Token(star, 78)), 2)
    padded = [[BOS, red, *[EOS] * 75], [BOS, star, *[EOS] * 75]]
    zeros = [[BOS, red, EOS, *[0] * 74], [BOS, star, EOS, *[0] * 74]]
    for ids in (padded, zeros, [[red], [star]], [[red, EOS], [BOS, star]], padded[0] + padded[1]):
        assert layout(ids) == expected
    assert layout([red, star]) == TokenizedPrompt((Token(red, 1), Token(star, 2)))
    assert [t.position for t in layout([red] * 76).tokens][-2:] == [75, 78]
    for nothing in ([], [[]], [BOS, EOS], [[BOS, *[EOS] * 76]]):
        assert layout(nothing) == TokenizedPrompt(())


def test_layout_takes_tensors_other_sizes_and_other_special_tokens():
    rows = torch.tensor([[1, 7, 8, 2], [1, 9, 2, 0]])
    expected = TokenizedPrompt((Token(7, 1), Token(8, 2), Token(9, 5)), 2, 2)
    assert layout(rows, 2, bos=1, eos=2) == expected
    assert layout(list(rows), 2, bos=1, eos=2) == expected
    assert layout(rows.flatten(), 2, bos=1, eos=2) == expected
    with pytest.raises(ValueError, match="content tokens"):
        layout(rows, 2, bos=5, eos=6)


@given(st.integers(0, 200))
def test_layout_and_tokenize_agree(count):
    ids = encode("star") * count
    assert layout(ids) == tokenize("star " * count, encode)


# Finding words


def test_every_occurrence_counts():
    assert find("star over star and a red star", "star") == [1, 3, 7]
    assert find("star star star", "star star") == [1, 2, 3]


@pytest.mark.parametrize(
    "word", ["star", "Star", " star, ", "(star:1.3)", "((star))", "star.", '"star"', "[star]!"]
)
def test_the_word_may_be_written_as_in_the_prompt(word):
    assert find("a (red star:1.2), over the sea", word) == [3]


def test_a_phrase_may_carry_weights_inside():
    assert find("a red (star:1.2)", "(red:0.8) star") == [2, 3]


def test_words_of_several_tokens():
    assert find("a lighthouse over the sea", "lighthouse") == [2, 3]
    assert find("a ★ over the sea", "★") == [2, 3, 4]
    assert find("un café rouge", "café") == find("un CAFÉ rouge", "café")
    assert len(find("un café rouge", "café")) == len(encode("café"))
    decomposed = "cafe\u0301"
    assert find("un café rouge", decomposed) == find("un café rouge", "café")


@pytest.mark.parametrize("word", ["dog", "sea star", "star red", "stars", "sta", "", " ,;", "()"])
def test_absent_words_are_not_found(word):
    assert find("a red star over the sea", word) == []


def test_a_word_longer_than_the_prompt_is_not_found():
    assert find("star", "red star over the sea") == []


def test_the_tail_of_another_word_is_not_the_word():
    house = encode("house")
    assert pieces("lighthouse")[-1:] == pieces("house")
    assert find_word(read("a lighthouse"), house) == []
    assert find_word(read("a lighthouse and a house"), house) == [6]
    assert find_word(tokenize("a lighthouse", encode), house) == [3]  # pieces are not known


def test_a_word_after_an_embedding_is_found():
    mark = TOKENIZER.token_to_id("!")  # what the WebUIs put where an embedding stands
    tokenized = layout([mark, mark, *encode("star")], decode_piece=piece)
    assert find(tokenized, "star") == [3]
    assert words(tokenized) == [("star", (3,))]


NAMES = [
    ("easystar", ["easystar"]),
    ("ral-chrome_v2", ["ral", "Chrome", "RAL-chrome_v2"]),
    ("red moon", ["moon", "red moon"]),
    ("赤い星", ["星", "赤い星"]),
]


@pytest.mark.parametrize(("name", "searched"), NAMES)
@pytest.mark.parametrize("vectors", [1, 3])
def test_an_embedding_is_found_by_its_name(name, searched, vectors):
    mark = TOKENIZER.token_to_id("!")  # what the WebUIs put where an embedding stands
    ids = [*encode("a"), *[mark] * vectors, *encode("over the sea")]
    place = range(2, 2 + vectors)
    tokenized = with_names(layout(ids, decode_piece=piece), [(place, encode(name))])
    for word in searched:
        assert find(tokenized, word) == list(place), word
    assert find(tokenized, "a " + name) == [1, *place]
    assert find(tokenized, name + " over") == [*place, place.stop]
    assert find(tokenized, "sea") == [place.stop + 2]
    assert find(tokenized, "star") == find(tokenized, "!") == []
    assert words(tokenized) == [(name, tuple(place)), ("sea", (place.stop + 2,))]


def test_embeddings_where_pieces_are_not_known_or_the_host_misplaces_them():
    ids = [*encode("a"), 0, 0, *encode("sea")]
    tokenized = with_names(layout(ids), [(range(2, 4), encode("red moon"))])
    assert find(tokenized, "red moon") == [2, 3]
    assert find(tokenized, "moon sea") == [2, 3, 4]
    # Behind the prompt's end: where the UNet gets it, it is found.
    late = with_names(layout(ids, decode_piece=piece), [(range(60, 62), encode("moon"))])
    assert find(late, "moon") == [60, 61]


def test_letters_that_the_text_encoder_does_not_know():
    names = {1: "a</w>", 2: "<unk></w>", 3: "star</w>"}
    tokenized = layout([1, 2, 3], decode_piece=names.__getitem__)
    assert find_word(tokenized, [2]) == []
    assert find_word(tokenized, [3]) == [3]
    assert why_missing(tokenized, Sought("星", (2,))) == (
        "the text encoder does not know the letters of word '星'"
    )
    assert [word.text for word in words(tokenized)] == ["star"]


def test_why_a_word_is_missing():
    def why(prompt, word, **options):
        return why_missing(read(prompt, **options), Sought.of(word, encode))

    assert why("a red star", "dog") == "word 'dog' is not in the prompt"
    assert why("a red star", "(stars:1.2)") == (
        "word 'stars' is not in the prompt (did you mean 'star'?)"
    )
    assert why("a red star", " ") == "no foreground word is given"
    assert why("", "dog") == "word 'dog' is not in the prompt"
    assert why_missing(read("a star"), Sought.of("dog", encode), "the prompts") == (
        "word 'dog' is not in the prompts"
    )
    unread = TokenizedPrompt((), problem="the prompt could not be read (ValueError: no)")
    assert why_missing(unread, Sought.of("dog", encode)) == unread.problem
    beyond = why("a " * 75 + "star", "star", weighted=False, max_chunks=1)
    assert beyond == "word 'star' lies beyond the 75 tokens of the prompt that the model reads"
    plain = why_missing(tokenize("a star", encode), Sought.of("dog", encode))
    assert plain == "word 'dog' is not in the prompt"


# Words for the automatic choice


def test_words_leave_out_function_words_and_marks():
    tokenized = read("The red star, over the sea -- and 2 (red:1.2) lighthouse's!")
    assert words(tokenized) == [
        ("red", (2, 12)),
        ("star", (3,)),
        ("sea", (7,)),
        ("lighthouse", (13, 14)),
    ]


def test_words_across_a_boundary_and_of_other_scripts():
    assert words(read("a " * 74 + "lighthouse")) == [("lighthouse", (75, 78))]
    found = words(read("étoile ★ 星空"))
    assert [w.text for w in found] == ["étoile", "★", "星空"]
    assert sorted(p for w in found for p in w.positions) == list(
        range(1, 1 + len(encode("étoile ★ 星空")))
    )


def test_words_of_plain_vocabularies_and_without_pieces():
    names = {5: "Red</w>", 6: "naïve</w>", 7: "étoile</w>"}
    tokenized = layout([5, 6, 7])
    assert [w.text for w in words(tokenized, names.__getitem__)] == ["red", "naïve", "étoile"]
    with pytest.raises(ValueError, match="decode_piece"):
        words(tokenized)


@given(st.text(max_size=60))
@example("B0B")
def test_every_word_offered_can_be_found(prompt):
    tokenized = read(prompt)
    for word in words(tokenized):
        assert set(word.positions) <= set(find_word(tokenized, encode(word.text)))
