// The page's state in words: short on the badge of the accordion's header, in full inside it.
(function (ccn) {
    "use strict";

    const INJECTION = "Injection: the units behind learn where the object in front is.";
    // What becomes of all units where nobody's place is asked for.
    const RULES = {sum: "added up as ControlNet does it", mean: "averaged"};
    // What the badge says: {text, warns}; an empty text for no badge.
    function badgeText(state) {
        if (!state.enabled) return {text: "", warns: false};
        const {problems, active, injects, fusion} = state;
        const [problem] = problems;
        const said = problem && ccn.problems.badge(problem, state);
        if (state.refused) return {text: said, warns: true};
        const layered = fusion === "layers" && !placeless(state);
        const done = layered ? "layered" : ccn.problems.isSummed(state) ? "summed" : "fused";
        const what = active ? `${active.length} units ${done}` : "on";
        if (said) return {text: `${what}, ${said}`, warns: true};
        return {text: injects && active ? `${what} + injection` : what, warns: false};
    }

    // Whether no unit in front has a place.
    const placeless = ({problems}) => problems.some(({all}) => all);

    // Where in the picture the only unit in front is, as parts of a sentence.
    function place({source, word}, {automatic, problems}) {
        if (source !== "word") return [placeWithoutWord(source)];
        if (problems.length) return [""];
        const clean = ccn.prompt.cleanWord(word);
        if (clean) return [": ", {word: clean}];
        return automatic
            ? ["; its word is chosen automatically (last time: ", {word: automatic}, ")"]
            : ["; its word is chosen automatically"];
    }

    const placeWithoutWord = (source) => ({
        all: " in the whole picture", image: " where the mask is painted",
        silhouette: " where its own picture shows something",
    }[source] ?? "");

    // The units in front, front to back; those that share a place as one.
    function inFront(state) {
        const {isAre, ofNumbers, unitsNamed} = ccn.problems;
        const places = ccn.layers.placesOf(state.fronts, state.words);
        if (state.fronts.length === 1) {
            const units = ofNumbers(state, places[0].numbers);
            return [`U${unitsNamed(units)} is in front`, ...place(state.fronts[0], state), "."];
        }
        const parts = places.flatMap(({numbers, word, source}, i) => {
            const units = ofNumbers(state, numbers);
            const before = i && places[i - 1].numbers.length > 1 ? "them" : "it";
            const whose = i ? `; behind ${before} u${unitsNamed(units)}`
                : `U${unitsNamed(units)} ${isAre(units)} in front`;
            const clean = ccn.prompt.cleanWord(word);
            const shared = units.length > 1 ? ", sharing one place" : "";
            if (source !== "word") return [whose, placeWithoutWord(source), shared];
            return clean ? [whose, shared, ": ", {word: clean}] : [whose, " by an automatic word"];
        });
        const apart = places.filter((one) => one.apart);
        const told = [...new Set(apart.map(({word}) => word))].flatMap((word) => [
            " The prompt has ", {word: ccn.prompt.cleanWord(word)}, " more than once: each of u"
            + `${unitsNamed(ofNumbers(state, apart.filter((one) => one.word === word).flatMap(
                ({numbers}) => numbers)))} has the part where it says more.`,
        ]);
        return [...parts, ".", ...told];
    }

    // What being in front means for the fusion, where that is not what all know.
    function whatFusionDoes(state) {
        const {STRONGEST, isSummed} = ccn.problems;
        if (state.fusion === "layers") {
            if (placeless(state)) return "";
            const elsewhere = isSummed(state) ? "" : `; elsewhere ${STRONGEST}`;
            return ` In its place ${state.fronts.length > 1 ? "each" : "it"} silences those behind that disagree${elsewhere}.`;
        }
        if (state.fronts.length < 2) return "";
        const rule = RULES[state.fusion] ? `all are ${RULES[state.fusion]}` : STRONGEST;
        return state.injects ? ` That is for injection only: in the fusion ${rule}.`
            : ` That is only shown: in the fusion ${rule}.`;
    }

    function partsPlayed(state) {
        const {STRONGEST, isAre, named, unitsNamed} = ccn.problems;
        const having = (role) => state.active.filter(({number}) => state.roles.get(number) === role);
        const [behind, fused] = ["behind", "fused"].map(having);
        const apart = state.units.filter((unit) => unit.why)
            .map((unit) => ` Unit ${named(unit)} is not fused: it ${unit.why}.`);
        if (!state.injects && !state.showsMask && state.fusion !== "layers") {
            const how = RULES[state.fusion] ?? `fused: ${STRONGEST}`;
            return [`U${unitsNamed(state.active)} are ${how}. Injection is off.`, ...apart];
        }
        const far = state.fronts.length > 1 ? "behind all" : "behind";
        return [
            ...inFront(state),
            behind.length ? ` U${unitsNamed(behind)} ${isAre(behind)} ${far}.` : "",
            fused.length ? ` U${unitsNamed(fused)} ${isAre(fused)} fused only.` : "",
            whatFusionDoes(state),
            ...apart,
        ];
    }

    // The state in full: {parts, mood}, where a part is text or {word}, and the mood "off", "good"
    // or "missing".
    function sentence(state) {
        if (!state.enabled) {
            return {parts: ["Switched off: tick the box in the title to use it."], mood: "off"};
        }
        const {problems, roles, refused} = state;
        const advice = problems.map((problem) => ccn.problems.advice(problem, state));
        if (refused && problems[0].code !== "neverMeet") return {parts: advice, mood: "missing"};
        const parts = roles ? partsPlayed(state)
            : ["It is on, and acts on two or more ControlNet units; this page does not show which are."];
        return {
            parts: [...parts, ...advice.map((text) => ` ${text}`)].filter((part) => part !== ""),
            mood: problems.length ? "missing" : "good",
        };
    }

    // What the badge's tooltip says: the sentence, and what injection is where the badge names it.
    function badgeTitle(state) {
        const said = sentence(state).parts.map((part) => part.word ?? part).join("");
        return badgeText(state).text.includes("injection") ? `${said} ${INJECTION}` : said;
    }

    // The sentence on the page, kept true.
    class Sentence {
        constructor(tab) {
            this.id = `${tab}_cross_controlnet`;
        }

        update(app, state) {
            const place = app.querySelector(`#${this.id}_head .ccn-state`);
            if (!place) return;
            const {parts, mood} = sentence(state);
            const key = JSON.stringify(parts);
            if (place !== this.place || key !== this.key) {
                place.replaceChildren(...parts.map((part) => (typeof part === "string"
                    ? document.createTextNode(part) : ccn.page.make("em", "ccn-chosen", part.word))));
                [this.place, this.key] = [place, key];
            }
            place.classList.toggle("ccn-warns", mood === "missing");
        }

        detach() {
            this.place?.replaceChildren();
            this.place = null;
        }
    }

    ccn.badgeText = badgeText;
    ccn.badgeTitle = badgeTitle;
    ccn.sentence = sentence;
    ccn.Sentence = Sentence;
})(globalThis.crossControlNet ??= {});
