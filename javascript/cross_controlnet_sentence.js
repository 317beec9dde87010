// The page's state in words: short on the badge of the accordion's header, in full inside it.
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
    const INJECTION = "Injection: the units behind learn where the object in front is.";
    const CHOOSE = "click another of its words in the row of the unit in front";

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
                + "Choose auto or a number for it under Advanced.",
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
        oneStep: {
            badge: () => "no injection: no mask in the first step",
            advice: () => "Nothing will be injected: the first step has no mask yet. Take more steps.",
        },
        noPrompt: {
            badge: () => "no injection: the prompt is empty",
            advice: () => "The prompt is empty, so nothing will be injected: type one that names what "
                + "the unit in front shows.",
        },
        noWord: {
            badge: () => "no injection: the prompt has no word",
            advice: () => "The prompt has no word that could name what is in front, so nothing will be "
                + "injected: type one.",
        },
        absent: {
            badge: ({word}) => `no injection: ${quoted(word)} is not in the prompt`,
            advice: ({word}) => `${quoted(word)} is not in the prompt, so nothing will be injected: `
                + `${CHOOSE}.`,
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

    // What the badge says: {text, warns}; an empty text for no badge.
    function badgeText(state) {
        if (!state.enabled) return {text: "", warns: false};
        const {problem, active, injects, fusion} = state;
        const said = problem && PROBLEMS[problem.code].badge(problem, state);
        if (state.refused) return {text: said, warns: true};
        const what = active ? `${active.length} units ${fusion === "sum" ? "summed" : "fused"}` : "on";
        if (said) return {text: `${what}, ${said}`, warns: true};
        return {text: injects && active ? `${what} + injection` : what, warns: false};
    }

    // Where in the picture the front unit is, as parts of a sentence.
    function place({source, word, automatic, problem}) {
        if (source !== "word") {
            return [{
                all: " in the whole picture", image: " where the mask is painted",
                silhouette: " where its own picture shows something",
            }[source] ?? ""];
        }
        if (problem) return [""];
        const clean = ccn.prompt.cleanWord(word ?? "");
        if (clean) return [": ", {word: clean}];
        return automatic
            ? ["; its word is chosen automatically (last time: ", {word: automatic}, ")"]
            : ["; its word is chosen automatically"];
    }

    function partsPlayed(state) {
        const having = (role) => state.active.filter(({number}) => state.roles.get(number) === role);
        const [front, behind, fused] = ["front", "behind", "fused"].map(having);
        const apart = state.units.filter((unit) => unit.why)
            .map((unit) => ` Unit ${named(unit)} is not fused: it ${unit.why}.`);
        if (!state.injects && !state.showsMask) {
            const how = state.fusion === "sum" ? "added up as ControlNet does it"
                : state.fusion === "mean" ? "averaged" : "fused: the stronger wins in each place";
            return [`U${unitsNamed(state.active)} are ${how}. Injection is off.`, ...apart];
        }
        const are = (units) => (units.length > 1 ? "are" : "is");
        return [
            ...front.flatMap((unit) => [`Unit ${named(unit)} is in front`, ...place(state), "."]),
            behind.length ? ` U${unitsNamed(behind)} ${are(behind)} behind.` : "",
            fused.length ? ` U${unitsNamed(fused)} ${are(fused)} fused only.` : "",
            ...apart,
        ];
    }

    // The state in full: {parts, mood}, where a part is text or {word}, and the mood "off", "good"
    // or "missing".
    function sentence(state) {
        if (!state.enabled) {
            return {parts: ["Switched off: tick the box in the title to use it."], mood: "off"};
        }
        const {problem, roles, refused} = state;
        const advice = problem && PROBLEMS[problem.code].advice(problem, state);
        if (refused && problem.code !== "neverMeet") return {parts: [advice], mood: "missing"};
        const parts = roles ? partsPlayed(state)
            : ["It is on, and acts on two or more ControlNet units; this page does not show which are."];
        return {
            parts: [...parts, advice ? ` ${advice}` : ""].filter((part) => part !== ""),
            mood: problem ? "missing" : "good",
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
    ccn.shortName = shortName;
    ccn.Sentence = Sentence;
})(globalThis.crossControlNet ??= {});
