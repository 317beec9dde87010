// What can be missing, in words: short for the badge, in full with advice for the sentence.
(function (ccn) {
    "use strict";

    const WORD_LENGTH = 30;
    const NAME_LENGTH = 40;

    function shortened(text, length) {
        const letters = [...text];
        return letters.length > length ? `${letters.slice(0, length).join("")}…` : text;
    }

    const quoted = (word) => `“${shortened(word, WORD_LENGTH)}”`;

    // What a model is for, of its file's name: "openpose" of control_v11p_sd15_openpose.
    function shortName(model) {
        const rest = model.replace(/\.(safetensors|pth|pt|bin)$/i, "")
            .replace(/^control_(v\d+\w{0,3}_)?(sd\d\w{0,4}_)?(?=\w)/i, "");
        return shortened(rest, NAME_LENGTH);
    }

    // How the host counts a unit that may be off: as it does those that are on.
    function shown(state, number) {
        const one = state.units?.[0];
        return number + (one ? one.shown - one.number : 0);
    }

    const named = (unit) => (unit.model ? `${unit.shown} (${shortName(unit.model)})` : `${unit.shown}`);
    const listed = (words) => words.length < 2 ? words.join("")
        : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
    const unitsNamed = (units) => `nit${units.length > 1 ? "s" : ""} ${listed(units.map(named))}`;

    const FRONT = "click “in front” in the row of the unit that shows the foreground";

    // The units of these numbers, by the numbers that the host shows and their models.
    const ofNumbers = (state, numbers) => numbers.map(
        (number) => state.active?.find((unit) => unit.number === number) ?? {shown: shown(state, number)},
    );
    const isAre = (units) => (units.length > 1 ? "are" : "is");
    const hasHave = (units) => (units.length > 1 ? "have" : "has");

    const STRONGEST = "the stronger wins in each place";
    // Whether all are added up where no unit in front has its place.
    const isSummed = ({fusion, outside}) =>
        (fusion === "layers" ? outside ?? "sum" : fusion) === "sum";

    // What it means that these units have no place: on the badge, and in the sentence.
    function lacking({all, numbers}, state) {
        const units = ofNumbers(state, numbers);
        if (!all) return `no place for u${unitsNamed(units.map((unit) => ({...unit, model: ""})))}`;
        return state.fusion === "layers" ? "no place" : "no injection";
    }

    function soThat({all, numbers}, state) {
        const units = ofNumbers(state, numbers);
        if (!all) return `u${unitsNamed(units)} ${hasHave(units)} no place`;
        if (state.fusion !== "layers") return "nothing will be injected";
        const what = isSummed(state) ? "all are added up" : STRONGEST;
        return state.injects ? `${what} and nothing will be injected` : what;
    }

    function chooseIn({numbers}, state) {
        const units = ofNumbers(state, numbers).map((unit) => ({...unit, model: ""}));
        const whose = state.fronts.length > 1 ? `u${unitsNamed(units)}` : "the unit in front";
        return `click another of its words in the row${units.length > 1 ? "s" : ""} of ${whose}`;
    }

    // Of each problem: what the badge says, and what the sentence says and advises.
    const PROBLEMS = {
        noHost: {
            badge: () => "no ControlNet",
            advice: () => "There is no ControlNet on this page, so nothing will happen. Install or "
                + "enable ControlNet (for AUTOMATIC1111: the extension sd-webui-controlnet).",
        },
        few: {badge: () => "needs 2 units", advice: fewUnits},
        unreadable: {
            badge: ({name, text}) => `off: ${name} ${quoted(text)}`,
            advice: ({name, text}) => `The ${name} cannot be ${quoted(text)}, so nothing will happen. `
                + (name === "layers" ? "Write them under Advanced as in 0 dancer, 1 horse."
                    : "Choose auto or a number for it under Advanced."),
        },
        twice: {
            badge: () => "off: two answers to who is in front",
            advice: () => "The foreground unit or word under Advanced says otherwise than the layers who "
                + `is in front, so nothing will happen: ${FRONT}.`,
        },
        same: {
            badge: ({number}, state) => `off: foreground and background are both unit ${shown(state, number)}`,
            advice: ({number}, state) => `Unit ${shown(state, number)} is chosen to be both in front and `
                + `behind, so nothing will happen: ${FRONT}.`,
        },
        gone: {
            badge: ({number}, state) => `off: unit ${shown(state, number)} is not on`,
            advice: ({number, place}, state) => `Unit ${shown(state, number)} is chosen to be ${place} but `
                + `is not on, so nothing will happen: enable it in ControlNet, or ${FRONT}.`,
        },
        apart: {
            badge: ({number}, state) => `off: unit ${shown(state, number)} is not fused`,
            advice: ({number, place, why}, state) => `Unit ${shown(state, number)} is chosen to be ${place}, `
                + `but it ${why}, so nothing will happen: ${FRONT}.`,
        },
        noMask: {
            badge: () => "off: the mask image is missing",
            advice: () => "The painted mask is missing, so nothing will happen: paint or upload one "
                + "under Advanced, or have the mask made from the word's attention.",
        },
        neverMeet: {
            badge: () => "the units never meet",
            advice: () => "They are never active in the same step, so nothing will be fused: let "
                + "their control steps overlap in ControlNet.",
        },
        late: {
            badge: ({step, last}) => `no injection: start step ${step} is beyond the last, ${last}`,
            advice: ({step, last}) => `Nothing will be injected: it would start at step ${step}, and the `
                + `last is ${last}. Set the injection start step to auto under Advanced.`,
        },
        deep: {
            badge: ({layer, last}) => `no injection: start layer ${layer} is beyond the last, ${last}`,
            advice: ({layer, last}) => `Nothing will be injected: it would start at layer ${layer}, and `
                + `the last is ${last}. Set the injection start layer to 0 under Advanced.`,
        },
        noneBehind: {
            badge: () => "no injection: no unit is behind",
            advice: () => "No unit is behind, so nothing will be injected: click “behind” in a row, or "
                + "untick KV-Injection under Advanced.",
        },
        covered: {
            badge: lacking,
            advice: (problem, state) => `U${unitsNamed(ofNumbers(state, [problem.number]))} has the whole `
                + `picture, so ${soThat(problem, state)}: move it further back.`,
        },
        oneStep: {
            badge: (problem, state) => `${lacking(problem, state)}: no mask in the first step`,
            advice: (problem, state) => "The first step has no mask yet, so "
                + `${soThat(problem, state)}. Take more steps.`,
        },
        noPrompt: {
            badge: (problem, state) => `${lacking(problem, state)}: the prompt is empty`,
            advice: (problem, state) => `The prompt is empty, so ${soThat(problem, state)}: type one that `
                + `names what the unit${state.fronts.length > 1 ? "s" : ""} in front `
                + `${state.fronts.length > 1 ? "show" : "shows"}.`,
        },
        noWord: {
            badge: (problem, state) => `${lacking(problem, state)}: the prompt has no word`,
            advice: (problem, state) => "The prompt has no word that could name what is in front, so "
                + `${soThat(problem, state)}: type one.`,
        },
        absent: {
            badge: (problem, state) => `${lacking(problem, state)}: ${quoted(problem.word)} is not in the prompt`,
            advice: (problem, state) => `${quoted(problem.word)} is not in the prompt, so `
                + `${soThat(problem, state)}: ${chooseIn(problem, state)}.`,
        },
    };

    function fewUnits(_problem, state) {
        if (!state.units.length) {
            return "No ControlNet unit is on. Enable two in ControlNet above, each with a model and a picture.";
        }
        const apart = state.units.filter((unit) => unit.why)
            .map((unit) => `Unit ${named(unit)} is not fused: it ${unit.why}.`);
        const only = state.active.map((unit) => `Only unit ${named(unit)} can be fused.`);
        const what = state.active.length ? "Enable a second ControlNet unit above"
            : "Enable two ControlNet units above";
        return [...only, ...apart, `${what}, with a model and a picture.`].join(" ");
    }

    // What the badge says of a problem, and what the sentence says of it.
    const badge = (problem, state) => PROBLEMS[problem.code].badge(problem, state);
    const advice = (problem, state) => PROBLEMS[problem.code].advice(problem, state);

    ccn.shortName = shortName;
    ccn.problems = {STRONGEST, badge, advice, isAre, isSummed, named, ofNumbers, unitsNamed};
})(globalThis.crossControlNet ??= {});
