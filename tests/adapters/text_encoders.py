"""Text encoders as WebUIs have them, as far as they are asked for tokens, and prompts by them."""

from types import SimpleNamespace

from lib_ccn.hosts.prompts import PromptBook, Tokenizer

VOCABULARY = ["<bos>", "<eos>"]


class Engine:
    """A text encoder that makes a token of every word, 6 to a chunk."""

    chunk_length = 6
    id_start, id_end = 0, 1

    def tokenize(self, texts):
        return [[self.number(word) for word in text.replace(",", " ").split()] for text in texts]

    def number(self, word):
        if word not in VOCABULARY:
            VOCABULARY.append(word)
        return VOCABULARY.index(word)

    def tokenize_line(self, line):
        ids = self.tokenize([line])[0]
        parts = [ids[i : i + 6] for i in range(0, len(ids), 6)] or [[]]
        padded = [[0, *part, *[1] * (7 - len(part))] for part in parts]
        return [SimpleNamespace(tokens=tokens) for tokens in padded], len(ids)


def schedules_of(text):
    """`a [b|c]` stands for `a b`, then `a c`."""
    head, bracket, tail = text.partition("[")
    return [head + option for option in tail.rstrip("]").split("|")] if bracket else [text]


def book(texts, cond, *words):
    return PromptBook(
        texts,
        cond,
        Tokenizer(Engine()),
        [*filter(None, words)],
        lambda text: text.split(" AND "),
        schedules_of,
    )


def positions(prompt, word):
    number = Engine().number(word)
    return [token.position for token in prompt.tokens if token.id == number]


class EngineWithEmbeddings(Engine):
    """As the WebUIs do, with `PromptChunkFix(offset, embedding)` and tokens 0 in their place."""

    def __init__(self, vectors_by_name):
        self.known = vectors_by_name

    def tokenize_line(self, line):
        rest, row, chunks = self.tokenize([line])[0], [], []
        fixes = []

        def flush():
            tokens = [0, *row, *[1] * (7 - len(row))]
            chunks.append(SimpleNamespace(tokens=tokens, fixes=list(fixes)))
            row.clear()
            fixes.clear()

        while rest:
            for name, vectors in self.known.items():
                ids = self.tokenize([name])[0]
                if rest[: len(ids)] == ids:
                    if len(row) + vectors > 6:
                        flush()
                    fixes.append((len(row), SimpleNamespace(name=name, vectors=vectors)))
                    row += [0] * vectors
                    rest = rest[len(ids) :]
                    break
            else:
                if len(row) == 6:
                    flush()
                row.append(rest.pop(0))
        flush()
        return chunks, sum(len(chunk.tokens) for chunk in chunks)


class PickyEngine(Engine):
    def tokenize_line(self, line):
        if "broken" in line:
            raise KeyError(line)
        return super().tokenize_line(line)
