"""A byte-level BPE with CLIP's normaliser and splits, and few merges."""

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

WHOLE = "a an the of over and with red blue green star field sea light house"


def clip_like_tokenizer() -> Tokenizer:
    """CLIP's normaliser, splits and `</w>`, with merges for a few words; the rest is bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = [*letters, *(c + "</w>" for c in letters)]
    merges: list[tuple[str, str]] = []

    def merge(left: str, right: str) -> str:
        merges.append((left, right))
        vocab.append(left + right)
        return left + right

    for word in WHOLE.split():
        ending = word[-1] + "</w>"
        for letter in reversed(word[:-1]):
            known = (letter, ending) in merges
            ending = letter + ending if known else merge(letter, ending)
    beginning = "l"  # so that "lighthouse" is "light" + "house</w>"
    for letter in "ight":
        beginning = merge(beginning, letter)
    merge("Ã", "©</w>")
    ids = {piece: i for i, piece in enumerate(vocab)}
    tokenizer = Tokenizer(models.BPE(ids, merges, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    splits = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(splits), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TOKENIZER = clip_like_tokenizer()


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def piece(token: int) -> str:
    return TOKENIZER.id_to_token(token)


def pieces(text: str) -> list[str]:
    return [piece(i) for i in encode(text)]
