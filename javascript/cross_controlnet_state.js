// What the page says will happen: read from its components once, and judged once. The badge, the
// sentence and the rows of the accordion are all made from this.
(function (ccn) {
    "use strict";

    const UNCOUNTED = /^(dpm adaptive|restart)\b/i; // take more steps than asked for
    const NUMBERED = /^\s*(?:auto|\d{1,3}(?::.*)?)\s*$/s; // what a unit or step may be given as
    // Of several words, each with a comma behind, it is not known here whose is which.
    const ONE_WORD = /\bCCN word: "?([^,"\n]+?) \(automatic\)(?!, [^,"\n]+ \(automatic\))/;
    // Units that the host adds by itself, by their files' names; nothing can be fused of them.
    const APART = [
        [/ip.?adapter/i, "an IP-Adapter"],
        [/t2i.?adapter|coadapter/i, "a T2I-Adapter"],
        [/lllite/i, "a ControlNet-LLLite"],
        [/shuffle/i, "a shuffle ControlNet"],
    ];

    // A unit's number as our dropdown writes it; null for "auto" and for what is none.
    function leadingNumber(text) {
        const number = /^\s*(\d+)(:|\s*$)/.exec(text ?? "");
        return number && Number(number[1]);
    }

    // When a unit is active, of its two sliders or its one of two ends, the later of which Forge's
    // shows first.
    function rangeOf(app, id) {
        const {numberOf} = ccn.page;
        const [start, end] = ["start_control_step_slider", "ending_control_step_slider"]
            .map((name) => numberOf(app, `${id}_${name}`));
        if (start !== null && end !== null) return [start, end];
        const ends = app.querySelectorAll(`#${id}_control_step_slider input[type=number]`);
        if (ends.length !== 2) return [0, 1];
        return [...ends].map((field) => Number(field.value)).sort((a, b) => a - b);
    }

    // Why a unit that is on is not fused, in words after "it"; "" where nothing is known.
    function whyApart(app, id, model) {
        const {numberOf, valueOf} = ccn.page;
        const module = valueOf(app, `${id}_preprocessor_dropdown`) ?? "";
        if (/^(reference|revision)/i.test(module)) return `uses ${module}`;
        if (/^\s*(none)?\s*$/i.test(model ?? "x")) return "has no model";
        if (numberOf(app, `${id}_control_weight_slider`) === 0) return "has weight 0";
        const kind = APART.find(([pattern]) => pattern.test(model ?? ""));
        return kind ? `is ${kind[1]}` : "";
    }

    // How much more than from 0 the host's tabs count: Forge Classic and Forge Neo begin with 1.
    function firstNumber(place) {
        const numbers = [...place.querySelectorAll("button")]
            .map((button) => /^\s*ControlNet Unit (\d+)/.exec(button.textContent ?? ""))
            .filter(Boolean).map((match) => Number(match[1]));
        return numbers.length ? Math.min(...numbers) : 0;
    }

    // The ControlNet units of a tab that are enabled: {number, shown, model, why, range}, where
    // `shown` is the number as the host's tabs count; null on an unknown page.
    // sd-webui-controlnet and the Forge family keep a checkbox of this class in every unit.
    function readUnits(app, tab) {
        for (const name of [`#${tab}_controlnet`, `#${tab}_script_container`]) {
            const place = app.querySelector(name);
            const boxes = [...place?.querySelectorAll(".cnet-unit-enabled input[type=checkbox]") ?? []];
            if (!boxes.length) continue;
            const first = firstNumber(place);
            return boxes.flatMap((box, number) => {
                if (!box.checked) return [];
                const unit = {number, shown: number + first, model: "", why: "", range: [0, 1]};
                const block = box.closest("[id$=_enable_checkbox]");
                if (!block) return [unit];
                const id = block.id.slice(0, -"_enable_checkbox".length);
                const model = ccn.page.valueOf(app, `${id}_model_dropdown`);
                const why = whyApart(app, id, model);
                const name = (model ?? "").replace(/\s*\[[0-9a-f]+\]\s*$/i, "").trim();
                return [{...unit, model: /^none$/i.test(name) ? "" : name, why, range: rangeOf(app, id)}];
            });
        }
        return null;
    }

    // Whether ControlNet is on the page at all.
    const isHosted = (app, tab) => Boolean(
        app.querySelector(`#${tab}_controlnet, #${tab}_script_container .cnet-unit-enabled`),
    );

    // The most steps that a pass of the tab will take; null where that is not known.
    function readSteps(app, tab) {
        const {enableBox, numberOf, valueOf} = ccn.page;
        const steps = numberOf(app, `${tab}_steps`);
        if (steps === null || UNCOUNTED.test(valueOf(app, `${tab}_sampling`) ?? "")) return null;
        if (tab !== "img2img") {
            const hires = enableBox(app, `${tab}_hr`)?.checked;
            const later = hires ? numberOf(app, `${tab}_hires_steps`) : 0;
            return later === null ? null : Math.max(steps, later);
        }
        const exact = typeof opts === "object" && opts !== null && opts.img2img_fix_steps;
        const strength = numberOf(app, `${tab}_denoising_strength`);
        return exact || strength === null
            ? steps
            : Math.min(steps, Math.floor(Math.min(strength, 0.999) * steps) + 1);
    }

    // Whether the mask editor holds a picture; null where that cannot be seen.
    function readMask(app, id) {
        const editor = app.querySelector(`#${id}`);
        if (!editor) return null;
        if ([...editor.querySelectorAll("img")].some((image) => image.getAttribute("src"))) return true;
        // Forge's editor keeps an empty canvas; any other canvas is a picture or cannot be read.
        return editor.querySelector("canvas:not(.forge-drawing-canvas)") ? null : false;
    }

    // The word that was chosen for the last picture, where that had the prompt of now; else "".
    function lastWord(text, prompt) {
        const plain = (some) => some.replace(/\s/g, "");
        const word = ONE_WORD.exec(text)?.[1] ?? "";
        const [all, now] = [plain(text), plain(prompt)];
        const same = all.startsWith(now) && /^(Negativeprompt:|Steps:)/.test(all.slice(now.length));
        return same ? word : "";
    }

    // Reads the state of one tab; keeps the words of its prompt, which take longer.
    class Reader {
        constructor(tab) {
            this.tab = tab;
            this.id = `${tab}_cross_controlnet`;
        }

        read(app) {
            const {enableBox, isChecked, numberOf, valueOf} = ccn.page;
            const {tab, id} = this;
            if (!enableBox(app, id)?.checked) return ccn.judge({enabled: false});
            const [foreground, background] = ["foreground_unit", "background_unit"]
                .map((name) => leadingNumber(valueOf(app, `${id}_${name}`)));
            return ccn.judge({
                enabled: true,
                hosted: isHosted(app, tab),
                units: readUnits(app, tab),
                fusion: this.choice(app, "fusion"),
                outside: this.choice(app, "outside_places"),
                injects: isChecked(app, `${id}_inject`),
                showsMask: isChecked(app, `${id}_show_mask`),
                foreground,
                background,
                layers: ccn.layers.parse(valueOf(app, `${id}_layers`) ?? "") ?? [],
                unreadable: this.unreadable(app),
                source: this.choice(app, "mask_source"),
                hasMask: readMask(app, `${id}_mask_image`),
                word: valueOf(app, `${id}_foreground_word`),
                words: this.words(app),
                automatic: this.automatic(app),
                startStep: leadingNumber(valueOf(app, `${id}_start_step`)),
                startLayer: numberOf(app, `${id}_start_layer`),
                steps: readSteps(app, tab),
            });
        }

        // What a dropdown of named choices means; the page carries the names' meanings along.
        choice(app, name) {
            const shown = ccn.page.valueOf(app, `${this.id}_${name}`);
            const text = app.querySelector(`#${this.id}_head .ccn-units`)?.getAttribute("data-titles");
            if (text !== this.titlesText) {
                this.titlesText = text;
                this.titles = text ? JSON.parse(text) : {};
            }
            return this.titles?.[name]?.[shown] ?? shown;
        }

        // A control that takes any text and holds none that can be used.
        unreadable(app) {
            for (const name of ["foreground_unit", "background_unit", "start_step"]) {
                const text = ccn.page.valueOf(app, `${this.id}_${name}`);
                if (text !== null && !NUMBERED.test(text)) return {name: name.replace("_", " "), text};
            }
            const text = ccn.page.valueOf(app, `${this.id}_layers`) ?? "";
            return ccn.layers.parse(text) ? null : {name: "layers", text};
        }

        // The words of the prompt, read again only when it changes. Styles add words unseen, and
        // the hires pass may have a prompt of its own.
        words(app) {
            const {valueOf, stripsComments} = ccn.page;
            const prompt = valueOf(app, `${this.tab}_prompt`);
            const more = app.querySelector(`#${this.tab}_styles .token`)
                ?? (this.tab === "txt2img" && valueOf(app, "hires_prompt"));
            if (prompt === null || more) return null;
            const comments = stripsComments();
            if (prompt !== this.prompt || comments !== this.comments) {
                [this.prompt, this.comments] = [prompt, comments];
                this.found = ccn.selection.wordsOf(prompt, comments);
            }
            return this.found;
        }

        automatic(app) {
            const text = app.querySelector(`#html_info_${this.tab}`)?.textContent ?? "";
            const prompt = ccn.page.valueOf(app, `${this.tab}_prompt`) ?? "";
            return text ? lastWord(text, prompt) : "";
        }
    }

    ccn.state = {Reader, lastWord};
})(globalThis.crossControlNet ??= {});
