// The words of a prompt, cut as lib_ccn/prompt.py cuts them, whose tests hold the two together.
// Knows no page; node loads it as well as a browser.
(function (ccn) {
    "use strict";

    const STOP_WORDS = new Set(`
        a an the this that these those some any each every no not of over and or but nor with without
        on onto in into inside at by for from to under above below behind beside between before after
        near front through across around against among along as is are was were be been being
        its his her their it he she they very while 's 't 're 've 'm 'll 'd
        の に は が を と で も へ や から まで より 的 了 和 与 在 是 有 之 及 也
    `.trim().split(/\s+/));
    const READ_LIMIT = 20000; // characters of a prompt; nobody picks from more
    const OPTION_LIMIT = 8;
    const DEPTH_LIMIT = 40;
    const CUT = "\0"; // where neighbouring words never meet: around options, between AND parts

    const SYNTAX =
        /\\([()[\]\\]?)|([([])|:\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)|([)\]])|[^\\()[\]:]+|:/gu;
    const BREAK = /(?<![\p{L}\p{N}_])BREAK(?![\p{L}\p{N}_])/u;
    const AND = /(?<![\p{L}\p{N}_])AND(?![\p{L}\p{N}_])/u;
    const AND_WEIGHT = /:\s*[+-]?(?:\d+\.?|\d*\.\d+)$/;
    const EXTRA_NETWORK = /<[\p{L}\p{N}_]+:[^>]+>/gu;
    const STEP = /^\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?\s*$/;
    // As CLIP splits, and finer where a word may begin without a blank before it: at each letter of
    // a script without spaces (UNSPACED_SCRIPTS of lib_ccn/spelling.py), at each mark.
    const UNSPACED = "[\\p{scx=Han}\\p{scx=Hiragana}\\p{scx=Katakana}\\p{scx=Bopomofo}"
        + "\\p{scx=Thai}\\p{scx=Lao}\\p{scx=Khmer}\\p{scx=Myanmar}]";
    const CLIP_SPLIT = new RegExp(`'s|'t|'re|'ve|'m|'ll|'d|(?=${UNSPACED})\\p{L}`
        + `|(?:(?!${UNSPACED})\\p{L})+|\\p{N}|[^\\s\\p{L}\\p{N}]`, "giu");
    const HAS_UNSPACED = new RegExp(UNSPACED, "u");
    const UNSPACED_LETTER = new RegExp(`^(?=${UNSPACED})\\p{L}`, "u");
    const COMBINING = /^[\p{M}\u200c\u200d]/u;
    const JOINER = /[\u200c\u200d]$/u;
    const MARKS_ONLY = /^[\p{P}\p{N}\p{Z}\p{M}\u200c\u200d!-/:-@[-`{-~]*$/u;
    const ENDS = /^[\s,.;:!?"'，。、；：！？]+|[\s,.;:!?"'，。、；：！？]+$/g;

    // Split a prompt into stretches of equal weight: [{text, weight}]. A BREAK has weight -1.
    function parseWeights(prompt) {
        const parts = [];
        const opened = {"(": [], "[": []};
        const close = (bracket, weight) => {
            for (const part of parts.slice(opened[bracket].pop())) part.weight *= weight;
        };
        for (const [all, escaped, opening, weight, closing] of prompt.matchAll(SYNTAX)) {
            if (escaped !== undefined) {
                parts.push({text: escaped, weight: 1});
            } else if (opening) {
                opened[opening].push(parts.length);
            } else if (weight && opened["("].length) {
                close("(", parseFloat(weight));
            } else if (closing === ")" && opened["("].length) {
                close("(", 1.1);
            } else if (closing === "]" && opened["["].length) {
                close("[", 1 / 1.1);
            } else {
                all.split(BREAK).forEach((text, i) => {
                    if (i) {
                        parts[parts.length - 1].text = parts[parts.length - 1].text.trimEnd();
                        parts.push({text: "BREAK", weight: -1});
                    }
                    parts.push({text: i ? text.trimStart() : text, weight: 1});
                });
            }
        }
        for (const [bracket, weight] of [["(", 1.1], ["[", 1 / 1.1]]) {
            while (opened[bracket].length) close(bracket, weight);
        }
        const segments = [];
        for (const {text, weight} of parts) {
            const last = segments[segments.length - 1];
            if (last && last.weight === weight) last.text += text;
            else segments.push({text, weight});
        }
        return segments.length ? segments : [{text: "", weight: 1}];
    }

    const isBreak = (segment) => segment.text === "BREAK" && segment.weight === -1;

    // Return a foreground word as plain text: no weights, no punctuation at its ends.
    function cleanWord(word) {
        const plain = parseWeights(word).map((s) => (isBreak(s) ? " " : s.text)).join("");
        return plain.replace(ENDS, "");
    }

    // Map the index of each bracket that is closed to the index of its partner.
    function bracketPairs(text) {
        const pairs = new Map();
        const opened = [];
        for (let i = 0; i < text.length; i++) {
            if (text[i] === "\\") {
                i++;
            } else if (text[i] === "(" || text[i] === "[") {
                opened.push(i);
            } else if (text[i] === ")" || text[i] === "]") {
                const partner = text[i] === ")" ? "(" : "[";
                let at = opened.length - 1;
                while (at >= 0 && text[opened[at]] !== partner) at--;
                if (at >= 0) {
                    pairs.set(opened[at], i);
                    opened.length = at;
                }
            }
        }
        return pairs;
    }

    // The options of `[a:b:0.5]`, `[a:0.5]` or `[a|b]` as [from, to] ranges; null for other text.
    function optionRanges(text, from, to, pairs) {
        const bars = [];
        const colons = [];
        for (let i = from; i < to; i++) {
            if (text[i] === "\\") i++;
            else if (pairs.has(i)) i = pairs.get(i);
            else if (text[i] === "|") bars.push(i);
            else if (text[i] === ":") colons.push(i);
        }
        if (bars.length) {
            return [from, ...bars.map((bar) => bar + 1)].map((at, i) => [at, bars[i] ?? to]);
        }
        const last = colons[colons.length - 1];
        if (!colons.length || colons.length > 2 || !STEP.test(text.slice(last + 1, to))) return null;
        return colons.length === 1
            ? [[from, from], [from, last]]
            : [[from, colons[0]], [colons[0] + 1, last]];
    }

    // Resolve prompt editing. Returns the text with all options side by side, each between CUTs,
    // and up to OPTION_LIMIT texts that the model may get to see.
    function resolveEditing(text) {
        const pairs = bracketPairs(text);
        let most = 1;
        const read = (from, to, pick, depth) => {
            let out = "";
            for (let i = from; i < to; i++) {
                const end = text[i] === "[" && depth < DEPTH_LIMIT ? pairs.get(i) : undefined;
                if (end === undefined) {
                    out += text[i];
                    if (text[i] === "\\" && i + 1 < to) out += text[++i];
                    continue;
                }
                const ranges = optionRanges(text, i + 1, end, pairs);
                const inner = ([a, b]) => read(a, b, pick, depth + 1);
                if (!ranges) {
                    out += `[${inner([i + 1, end])}]`;
                } else if (pick === null) {
                    most = Math.max(most, ranges.length);
                    out += CUT + ranges.map(inner).join(CUT) + CUT;
                } else {
                    out += inner(ranges[pick % ranges.length]);
                }
                i = end;
            }
            return out;
        };
        const all = read(0, text.length, null, 0);
        const count = all.includes(CUT) ? Math.min(Math.max(most, 2), OPTION_LIMIT) : 0;
        const variants = Array.from({length: count}, (_, pick) => read(0, text.length, pick, 0));
        return {all, variants};
    }

    // Where words of scripts without spaces begin, by the browser's dictionaries: a set of indices;
    // null where it has none, or for a text that needs none.
    function wordStarts(text) {
        if (typeof Intl.Segmenter !== "function" || !HAS_UNSPACED.test(text)) return null;
        const segmenter = new Intl.Segmenter(undefined, {granularity: "word"});
        return new Set(Array.from(segmenter.segment(text), (segment) => segment.index));
    }

    // Cut plain text into atoms, as CLIP does before it looks for its tokens: text as written, key
    // in lower case, glued if nothing stands between it and the atom before, tied if it cannot
    // begin a word, as a combining mark, inside if it belongs to the same word as the one before.
    function splitText(text) {
        const plain = text.normalize("NFC");
        const starts = wordStarts(plain);
        let end = -1;
        let before = "";
        return [...plain.matchAll(CLIP_SPLIT)].map((match) => {
            const [here] = match;
            const glued = match.index === end;
            const tied = glued && (COMBINING.test(here) || JOINER.test(before));
            const goesOn = UNSPACED_LETTER.test(here)
                ? (starts ? !starts.has(match.index) : UNSPACED_LETTER.test(before))
                : /^\p{EMod}/u.test(here) || (COMBINING.test(before) && /^\p{L}/u.test(here));
            const inside = tied || (glued && goesOn);
            end = match.index + here.length;
            before = here;
            return {text: here, key: here.toLowerCase(), glued, tied, inside, cut: ""};
        });
    }

    // The atoms of a prompt. cut: "part" or "break" where one and the atom before it belong to
    // different AND parts or options, or to different chunks.
    function atomsOf(prompt) {
        const atoms = [];
        let cut = "";
        for (const segment of parseWeights(prompt)) {
            if (isBreak(segment)) {
                cut ||= "break";
                continue;
            }
            segment.text.split(CUT).forEach((piece, i) => {
                if (i) cut = "part";
                for (const atom of splitText(piece)) {
                    atoms.push({...atom, cut});
                    cut = "";
                }
            });
        }
        return atoms;
    }

    // Read a prompt as the WebUIs do: comments, extra networks, AND, editing, weights, BREAK.
    // Returns {atoms, variants}: the atoms of everything written, and those of texts that the
    // model may see, where prompt editing leaves a choice.
    function readPrompt(prompt, comments = false) {
        let text = String(prompt).slice(0, READ_LIMIT).replaceAll(CUT, "");
        if (comments) text = text.replace(/#[^\n]*/g, "");
        const parts = text.replace(EXTRA_NETWORK, "").split(AND)
            .map((part) => resolveEditing(part.trimEnd().replace(AND_WEIGHT, "")));
        return {
            atoms: atomsOf(parts.map((part) => part.all).join(CUT)),
            variants: parts.flatMap((part) => part.variants.map(atomsOf)),
        };
    }

    ccn.prompt = {STOP_WORDS, MARKS_ONLY, UNSPACED_LETTER, parseWeights, cleanWord, splitText, readPrompt};
})(globalThis.crossControlNet ??= {});
