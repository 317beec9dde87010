// What follows from what the page holds: who is in front and who behind, and what is missing. Knows
// no page; node loads it as well as a browser.
(function (ccn) {
    "use strict";

    const LAST_LAYER = 6; // of SD 1.5; no ControlNet that the WebUIs load has more
    // A problem is {code, ...what its words need}. The method stands aside as a whole:
    const REFUSALS = [
        "noHost", "few", "unreadable", "twice", "same", "gone", "apart", "noMask", "neverMeet",
    ];
    const ROLELESS = ["twice", "same", "gone", "apart"];

    const usesMasks = ({injects, showsMask, fusion}) => injects || showsMask || fusion === "layers";

    function whyRefused(state, active) {
        const {foreground, background, layers, word, hasMask, unreadable} = state;
        if (unreadable) return {code: "unreadable", ...unreadable};
        const fronts = ccn.layers.named(state);
        if (layers?.length) {
            const typed = ccn.layers.tidy(word);
            const others = (foreground != null && foreground !== fronts[0].number)
                || (typed && typed !== fronts[0].word);
            if (others) return {code: "twice"};
        }
        const numbers = fronts.map(({number}) => number);
        if (background != null && numbers.includes(background)) {
            return {code: "same", number: background};
        }
        const places = [...numbers.map((number) => [number, "in front"]), [background, "behind"]];
        for (const [number, place] of places) {
            if (number == null || !state.units || active.some((unit) => unit.number === number)) continue;
            const unit = state.units.find((one) => one.number === number);
            return {code: unit ? "apart" : "gone", number, place, why: unit?.why};
        }
        const needed = usesMasks(state) && fronts.some(({source}) => source === "image");
        return needed && hasMask === false ? {code: "noMask"} : null;
    }

    // What keeps injection from acting, and units in front from having their places, as far as is
    // known. `words` are those of the prompt, null where the page does not show all of it; `steps`
    // the most of any pass.
    function whatLacks(state, fronts, active) {
        const {injects, fusion, startStep, startLayer, steps} = state;
        const found = [];
        if (injects && steps != null && startStep != null && startStep >= steps) {
            found.push({code: "late", step: startStep, last: steps - 1});
        } else if (injects && startLayer > LAST_LAYER) {
            found.push({code: "deep", layer: startLayer, last: LAST_LAYER});
        } else if (injects && active?.length && fronts.length >= active.length) {
            found.push({code: "noneBehind"});
        }
        if (found.length && fusion !== "layers") return found;
        return injects || fusion === "layers" ? [...found, ...whatHasNoPlace(state, fronts)] : [];
    }

    // Each problem has the `numbers` of the units that it leaves without a place, and whether those
    // are `all` that are in front.
    function whatHasNoPlace({steps, words}, fronts) {
        const having = (fits) => fronts.filter(fits).map(({number}) => number);
        const problem = (code, numbers, more = {}) =>
            ({code, numbers, all: numbers.length === fronts.length, ...more});
        const found = [];
        const whole = fronts.findIndex(({source}) => source === "all");
        if (whole >= 0 && whole < fronts.length - 1) {
            const number = fronts[whole].number;
            found.push(problem("covered", fronts.slice(whole + 1).map((one) => one.number), {number}));
        }
        const worded = having(({source}) => source === "word");
        if (!worded.length) return found;
        if (steps === 1) return [...found, problem("oneStep", worded)];
        if (!words) return found;
        if (!words.atoms.length) return [...found, problem("noPrompt", worded)];
        const absent = new Map();
        for (const {number, word, source} of fronts) {
            const clean = ccn.prompt.cleanWord(word);
            if (source !== "word" || !ccn.selection.isMissing(words, clean)) continue;
            absent.set(clean, [...absent.get(clean) ?? [], number]);
        }
        for (const [word, numbers] of absent) found.push(problem("absent", numbers, {word}));
        const automatic = having(({source, word}) => source === "word" && !ccn.prompt.cleanWord(word));
        if (automatic.length && !words.chips.length) found.push(problem("noWord", automatic));
        // Together they may leave nobody.
        const lacking = new Set(found.flatMap(({numbers}) => numbers));
        return found.map((one) => ({...one, all: lacking.size === fronts.length}));
    }

    // Whether two of the units are ever active in the same step.
    function everMeet(units) {
        return units.some(({range: [start, end]}, i) => units.slice(i + 1).some(
            ({range: [from, to]}) => Math.max(start, from) < Math.min(end, to),
        ));
    }

    // What each unit is, by its number: "front", "behind", "fused" for one that is fused only, or
    // "apart"; as Session does it.
    function rolesOf({units, background}, fronts) {
        const isFront = ({number}) => fronts.some((front) => front.number === number);
        const isBehind = ({number}) => background == null || number === background;
        return new Map(units.map((unit) => [unit.number, unit.why ? "apart"
            : isFront(unit) ? "front" : isBehind(unit) ? "behind" : "fused"]));
    }

    // Add to a state what follows from it: `active`, the units that can be fused, null where that
    // is unknown; `fronts`, those in front, front to back; `roles` by unit number, null while none
    // has one; `problems`, none where nothing is known against it; `refused`, whether the first of
    // them keeps the whole method from acting.
    function judge(state) {
        const judged = {
            ...state, active: null, fronts: [], roles: null, problems: [], refused: false,
        };
        if (!state.enabled) return judged;
        const active = state.units && state.units.filter((unit) => !unit.why);
        judged.active = active;
        judged.fronts = active ? ccn.layers.frontsOf(state, active) : ccn.layers.named(state);
        const refusal = state.hosted === false ? {code: "noHost"}
            : active && active.length < 2 ? {code: "few"}
            : whyRefused(state, active) ?? (active && !everMeet(active) ? {code: "neverMeet"} : null);
        judged.problems = refusal ? [refusal] : whatLacks(state, judged.fronts, active);
        judged.refused = REFUSALS.includes(judged.problems[0]?.code);
        if (active && !ROLELESS.includes(judged.problems[0]?.code)) {
            judged.roles = rolesOf(state, judged.fronts);
        }
        return judged;
    }

    ccn.judge = judge;
})(globalThis.crossControlNet ??= {});
