// Which words of a prompt can be chosen, and what a click on one makes of the foreground word.
// Knows no page; node loads it as well as a browser.
(function (ccn) {
    "use strict";

    const WORD_LIMIT = 200; // WORD_LIMIT of lib_ccn/settings.py, in characters
    const CHIP_LIMIT = 500;
    const JOINT = /^[-‐‑–'’_&/.+]+$/u; // joins words inside a phrase, as in well-lit
    // A Korean noun carries its particles behind it: PARTICLES of lib_ccn/spelling.py.
    const PARTICLES = `
        이 가 은 는 을 를 의 에 에서 에게 께 한테 로 으로 와 과 랑 이랑 도 만 들 부터 까지 처럼 보다
    `.trim().split(/\s+/);
    const PARTICLE = new RegExp(`^(?:${PARTICLES.join("|")}){1,3}$`, "u");

    const length = (text) => [...text].length;

    function phrase(atoms, start, end) {
        return atoms.slice(start, end)
            .map((atom, i) => (i && !atom.glued ? " " : "") + atom.text).join("");
    }

    // True where an atom's text is the wanted word, or, as the last one, has only particles behind.
    function reads(atom, key, isLast) {
        return atom.key === key || (isLast && atom.key.startsWith(key)
            && PARTICLE.test(atom.key.slice(key.length)));
    }

    // All [start, end) ranges of atoms that read like `word`; phrases do not cross AND or options,
    // and a BREAK only where `acrossBreaks`, as in find_word of lib_ccn/prompt.py.
    function find(atoms, word, acrossBreaks = false) {
        const wanted = ccn.prompt.splitText(ccn.prompt.cleanWord(word));
        const found = [];
        for (let start = 0; wanted.length && start + wanted.length <= atoms.length; start++) {
            const end = start + wanted.length;
            const fits = wanted.every(({key}, i) => {
                const atom = atoms[start + i];
                const joined = !i || !atom.cut || (acrossBreaks && atom.cut === "break");
                return joined && reads(atom, key, start + i === end - 1);
            });
            if (fits && !atoms[start].tied && !atoms[end]?.tied) found.push([start, end]);
        }
        return found;
    }

    function bridges(atoms, i) {
        const {key, glued} = atoms[i];
        if (ccn.prompt.STOP_WORDS.has(key) || /^\p{N}$/u.test(key) || key === "&") return true;
        return JOINT.test(key) && glued && Boolean(atoms[i + 1]) && atoms[i + 1].glued;
    }

    // The words of a prompt that can name a foreground: {atoms, variants, chips}, where a chip is
    // {start, end, text, linked, between, cut}: linked to the chip before it, so that the two fit
    // in one phrase with the function words `between` them; `cut` where something new begins.
    function wordsOf(prompt, comments = false) {
        const {atoms, variants} = ccn.prompt.readPrompt(prompt, comments);
        const chips = [];
        for (let start = 0, end; start < atoms.length && chips.length < CHIP_LIMIT; start = end) {
            end = start + 1;
            while (end < atoms.length && atoms[end].inside && !atoms[end].cut) end++;
            const text = phrase(atoms, start, end);
            const key = text.toLowerCase();
            if (ccn.prompt.STOP_WORDS.has(key) || ccn.prompt.MARKS_ONLY.test(key)) continue;
            if (length(text) > WORD_LIMIT || !find(atoms.slice(start, end), text).length) continue;
            const before = chips[chips.length - 1];
            const gap = before ? atoms.slice(before.end, start) : [];
            const cut = Boolean(before) && [...gap, atoms[start]].some((atom) => atom.cut);
            const linked = Boolean(before) && !cut
                && gap.every((_, i) => bridges(atoms, before.end + i));
            const between = linked ? phrase(atoms, before.end, start) : "";
            chips.push({start, end, text, linked, between, cut});
        }
        return {atoms, variants, chips};
    }

    // The [first, last] chips of every place in the prompt where the word stands.
    function selectedRuns(words, word) {
        const runs = [];
        for (const [start, end] of find(words.atoms, word)) {
            const inside = (chip) => chip.start >= start && chip.end <= end;
            const first = words.chips.findIndex(inside);
            let last = first;
            while (last + 1 < words.chips.length && inside(words.chips[last + 1])) last++;
            if (first >= 0) runs.push([first, last]);
        }
        return runs;
    }

    // True if the word is given and stands nowhere in what the model may see.
    function isMissing(words, word) {
        if (!ccn.prompt.splitText(ccn.prompt.cleanWord(word)).length) return false;
        return ![words.atoms, ...words.variants].some((atoms) => find(atoms, word, true).length);
    }

    // Return the new foreground word after chip `index` is used while the word is `word`.
    // mode "click": choose it; a neighbour of the chosen words joins them, an outer one of them
    // leaves, the only one clears. "extend": everything from the chosen words to it. "only": it.
    function choose(words, word, index, mode = "click") {
        const {atoms, chips} = words;
        const runs = selectedRuns(words, word);
        const own = runs.find(([first, last]) => first <= index && index <= last);
        const linkedUpTo = (from, to) => chips.slice(from + 1, to + 1).every((chip) => chip.linked);
        const textOf = (first, last) => {
            const text = phrase(atoms, chips[first].start, chips[last].end);
            const usable = length(text) <= WORD_LIMIT
                && find(atoms, text).some(([start]) => start === chips[first].start);
            return usable ? text : chips[index].text;
        };
        if (own) {
            const [first, last] = own;
            if (first === last) return "";
            if (mode === "only") return chips[index].text;
            if (index === first) return textOf(first + 1, last);
            if (index === last) return textOf(first, last - 1);
            return chips[index].text;
        }
        if (mode !== "only") {
            const spans = runs
                .map(([first, last]) => [Math.min(first, index), Math.max(last, index), last - first])
                .filter(([first, last]) => linkedUpTo(first, last))
                .sort((a, b) => a[1] - a[0] - (b[1] - b[0]));
            const [first, last, count] = spans[0] ?? [];
            if (spans.length && (mode === "extend" || last - first === count + 1)) {
                return textOf(first, last);
            }
        }
        return chips[index].text;
    }

    ccn.selection = {WORD_LIMIT, PARTICLES, find, wordsOf, selectedRuns, isMissing, choose};
})(globalThis.crossControlNet ??= {});
