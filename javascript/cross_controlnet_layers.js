// Who is in front, and in which order: the text of the setting `layers`, read and written as
// lib_ccn/layers.py does it, and what the accordion's controls shall hold after a click. Knows no
// page; node loads it as well as a browser.
(function (ccn) {
    "use strict";

    const LAYER_LIMIT = 10; // as in lib_ccn/layers.py
    const UNIT_LIMIT = 99; // as in lib_ccn/settings.py
    const ENTRY = /^\s*(\d{1,3})(?:\s+([^(),;]*?))?\s*(?:\(([^()]*)\))?\s*$/;
    const SOURCES = ["word", "all", "image", "silhouette"];
    const RESERVED = /[%,;()]/g;

    const tidy = (word) => (word ?? "").trim().split(/\s+/).join(" ");

    function unquote(text) {
        return text.replace(/(?:%[0-9a-f]{2})+/gi, (found) => {
            try {
                return decodeURIComponent(found);
            } catch {
                return found;
            }
        });
    }

    // Whether what stands in an entry's brackets can be used.
    function isDetail(text) {
        const [, value] = /^threshold (.*)$/.exec(text) ?? [];
        if (value === undefined) return SOURCES.includes(text);
        return value.trim() !== "" && Number(value) >= 0 && Number(value) <= 1;
    }

    function entryOf(part) {
        const [, number, text, brackets] = ENTRY.exec(part) ?? [];
        if (number === undefined || Number(number) > UNIT_LIMIT) return null;
        const word = tidy(unquote(text ?? ""));
        const details = (brackets ?? "").split(",").map((detail) => detail.trim()).filter(Boolean);
        if ([...word].length > ccn.selection.WORD_LIMIT || !details.every(isDetail)) return null;
        const source = details.findLast((detail) => SOURCES.includes(detail)) ?? null;
        return {number: Number(number), word, source, details: details.join(", ")};
    }

    // The entries of a text, front to back: {number, word, source, details}, where `source` is null
    // for that of all; null where the text cannot be used.
    function parse(text) {
        if (!text.trim()) return [];
        const found = text.split(/[,;](?![^()]*\))/).map(entryOf);
        if (!found.every(Boolean) || found.length > LAYER_LIMIT) return null;
        return new Set(found.map((one) => one.number)).size === found.length ? found : null;
    }

    function write(entries) {
        const escaped = (letter) => `%${letter.charCodeAt(0).toString(16).toUpperCase()}`;
        return entries.map(({number, word, details}) => [
            number, tidy(word).replace(RESERVED, escaped), details ? `(${details})` : "",
        ].filter((part) => part !== "").join(" ")).join(", ");
    }

    // Who is said to be in front, front to back: {number, word, source, details}; the number is null
    // where it is left to the method.
    function named({layers, foreground, word, source}) {
        if (!layers?.length) return [{number: foreground ?? null, word: tidy(word), source, details: ""}];
        return layers.map((one) => {
            // A word has its place though the others' be the whole picture.
            const own = source === "all" && one.word ? "word" : source;
            return {...one, source: one.source ?? own};
        });
    }

    // The same with the units that it comes to, of those that can be fused.
    function frontsOf(state, active) {
        const first = active.find(({number}) => number !== state.background);
        return named(state).map((one) => ({...one, number: one.number ?? first?.number ?? null}))
            .filter(({number}) => active.some((unit) => unit.number === number));
    }

    // What the controls shall hold for these units in front, by setting; what is not named stays.
    function holding(state, fronts) {
        const kept = state.background == null || (
            state.active.some(({number}) => number === state.background)
            && !fronts.some(({number}) => number === state.background));
        const background = kept ? {} : {background_unit: "auto"};
        const [front] = fronts;
        if (fronts.length > 1 || front.details) {
            return {
                layers: write(fronts), foreground_unit: "auto", foreground_word: "", ...background,
            };
        }
        const left = state.layers?.length ? {layers: "", foreground_word: front.word} : {};
        return {...left, foreground_unit: String(front.number), ...background};
    }

    // The same after a click that gives a unit a role.
    function chosen(state, number, role) {
        const {active, fusion} = state;
        const fronts = frontsOf(state, active);
        const others = fronts.filter((front) => front.number !== number);
        if (role === "behind") {
            if (state.roles?.get(number) === "fused") return {background_unit: "auto"};
            if (others.length) return holding(state, others);
            // Somebody has to be in front: the first of the others.
            const other = active.find((unit) => unit.number !== number);
            const word = fronts[0]?.word ?? "";
            return other
                ? {...holding(state, [{number: other.number, word, details: ""}]), background_unit: "auto"} : {};
        }
        if (others.length < fronts.length) return holding(state, fronts);
        const entry = {number, word: "", source: null, details: ""};
        // With the paper's rules somebody has to be behind: the last one that is changes places.
        const swaps = fusion !== "layers" && fronts.length + 1 >= active.length;
        return holding(state, swaps ? [{...entry, word: fronts[0]?.word ?? ""}] : [...fronts, entry]);
    }

    // The same after a unit in front has gone by so many places further back.
    function moved(state, number, by) {
        const fronts = frontsOf(state, state.active);
        const from = fronts.findIndex((front) => front.number === number);
        const to = from + by;
        if (from < 0 || to < 0 || to >= fronts.length) return {};
        fronts.splice(to, 0, ...fronts.splice(from, 1));
        return holding(state, fronts);
    }

    // The same with another word for a unit in front; `text` is what `layers` holds now.
    function worded(text, number, word) {
        const entries = parse(text ?? "");
        if (!entries?.length) return {foreground_word: word};
        return {layers: write(entries.map((one) => (one.number === number ? {...one, word} : one)))};
    }

    // Units that share a place, as one: {numbers, word, source, apart}, front to back. Of a word
    // that the prompt has more than once each unit has a part: it is `apart` then.
    function placesOf(fronts, words) {
        const places = [];
        for (const {number, word, source} of fronts) {
            const same = places.filter((one) => one.source === source && (
                source === "image" || (source === "word" && word && one.word === word)));
            const apart = same.length > 0 && source === "word" && timesOf(words, word) > 1;
            if (same.length && !apart) {
                same[0].numbers.push(number);
                continue;
            }
            places.push({numbers: [number], word, source, apart});
            if (apart) same.forEach((one) => (one.apart = true));
        }
        return places;
    }

    // How often a prompt has a word, in the texts that the model may see.
    function timesOf(words, word) {
        if (!words) return 1;
        return Math.max(...[words.atoms, ...words.variants].map((atoms) => {
            const found = ccn.selection.find(atoms, word, true);
            return found.filter(([start]) => !found.some(([, end]) => end === start)).length;
        }));
    }

    ccn.layers = {
        LAYER_LIMIT, UNIT_LIMIT, SOURCES, tidy, parse, write, named, frontsOf, chosen, moved, worded, placesOf,
    };
})(globalThis.crossControlNet ??= {});
