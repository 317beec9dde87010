// What will happen, on the header of the accordion, as far as the page can know.
(function (ccn) {
    "use strict";

    const LAST_LAYER = 6; // of SD 1.5; no ControlNet that the WebUIs load has more
    const WORD_LENGTH = 30;
    const UNCOUNTED = /^(dpm adaptive|restart)\b/i; // take more steps than asked for

    const quoted = (word) => {
        const letters = [...word];
        return `“${letters.slice(0, WORD_LENGTH).join("")}${letters.length > WORD_LENGTH ? "…" : ""}”`;
    };

    // Why the whole method would stand aside; "" where nothing is known against it.
    function whyRefused({on, foreground, background, source, injects, showsMask, hasMask}) {
        if (foreground != null && foreground === background) {
            return `foreground and background are both unit ${foreground}`;
        }
        for (const unit of [foreground, background]) {
            if (on && unit != null && !on.includes(unit)) return `unit ${unit} is not on`;
        }
        const needed = source === "image" && (injects || showsMask);
        return needed && hasMask === false ? "the mask image is missing" : "";
    }

    // Why nothing would be injected; "" where nothing is known against it. `words` are those of
    // the prompt, null where the page does not show all of it; `steps` the most of any pass.
    function whyIdle({source, word, words, startStep, startLayer, steps}) {
        if (steps != null && startStep >= steps) {
            return `start step ${startStep} is beyond the last, ${steps - 1}`;
        }
        if (startLayer > LAST_LAYER) {
            return `start layer ${startLayer} is beyond the last, ${LAST_LAYER}`;
        }
        if (source !== "word") return "";
        if (steps === 1) return "no mask in the first step";
        if (!words) return "";
        const clean = ccn.prompt.cleanWord(word ?? "");
        if (!words.atoms.length) return "the prompt is empty";
        if (ccn.selection.isMissing(words, clean)) return `${quoted(clean)} is not in the prompt`;
        return clean || words.chips.length ? "" : "the prompt has no word";
    }

    // Whether two of the units are ever active in the same step.
    function everMeet(ranges) {
        return ranges.some(([start, end], i) => ranges.slice(i + 1).some(
            ([from, to]) => Math.max(start, from) < Math.min(end, to),
        ));
    }

    // What the badge says: {text, warns}; an empty text for no badge. `units` is the number of
    // ControlNet units that take part, `on` their numbers, `ranges` when each is active; null
    // where the page does not tell, as with everything else.
    function badgeText(state) {
        const {enabled, units, ranges, sums, injects} = state;
        if (!enabled) return {text: "", warns: false};
        if (units !== null && units < 2) return {text: "needs 2 units", warns: true};
        const refused = whyRefused(state);
        if (refused) return {text: `off: ${refused}`, warns: true};
        if (ranges && !everMeet(ranges)) return {text: "the units never meet", warns: true};
        const what = units === null ? "on" : `${units} units ${sums ? "summed" : "fused"}`;
        const idle = injects ? whyIdle(state) : "";
        if (idle) return {text: `${what}, no injection: ${idle}`, warns: true};
        return {text: injects && units !== null ? `${what} + injection` : what, warns: false};
    }

    // The checkbox that holds whether an InputAccordion is on: the one its header shows, or the
    // hidden one behind it; null on an unknown page.
    function enableBox(app, id) {
        return app.querySelector(`#${id}-visible-checkbox`)
            ?? app.querySelector(`#${id}-checkbox input[type=checkbox]`);
    }

    // What a component of the page holds, as text; null where it is not there.
    function valueOf(app, id) {
        const block = app.querySelector(`#${id}`);
        const field = block?.querySelector("input:checked")
            ?? block?.querySelector("input[type=number]")
            ?? block?.querySelector("textarea, input:not([type=checkbox]), select");
        return field ? field.value : null;
    }

    const isChecked = (app, id) =>
        Boolean(app.querySelector(`#${id}`)?.querySelector("input[type=checkbox]")?.checked);

    function numberOf(app, id) {
        const value = valueOf(app, id);
        return value === null || value.trim() === "" || isNaN(value) ? null : Number(value);
    }

    // A unit's number as our dropdown writes it; null for "auto" and for what is none.
    function unitOf(app, id) {
        const number = /^\s*(\d+)(:|\s*$)/.exec(valueOf(app, id) ?? "");
        return number && Number(number[1]);
    }

    // When a unit is active, of its two sliders or its one of two ends, the later of which Forge's
    // shows first.
    function rangeOf(app, id) {
        const [start, end] = ["start_control_step_slider", "ending_control_step_slider"]
            .map((name) => numberOf(app, `${id}_${name}`));
        if (start !== null && end !== null) return [start, end];
        const ends = app.querySelectorAll(`#${id}_control_step_slider input[type=number]`);
        if (ends.length !== 2) return [0, 1];
        return [...ends].map((field) => Number(field.value)).sort((a, b) => a - b);
    }

    // The ControlNet units of a tab that take part: {number, range}; null on an unknown page.
    // sd-webui-controlnet and the Forge family keep a checkbox of this class in every unit.
    function readUnits(app, tab) {
        for (const place of [`#${tab}_controlnet`, `#${tab}_script_container`]) {
            const boxes = app.querySelectorAll(`${place} .cnet-unit-enabled input[type=checkbox]`);
            if (!boxes.length) continue;
            return [...boxes].flatMap((box, number) => {
                const block = box.closest("[id$=_enable_checkbox]");
                const id = block ? block.id.slice(0, -"_enable_checkbox".length) : null;
                const idle = id !== null && (numberOf(app, `${id}_control_weight_slider`) === 0
                    || /^none$/i.test(valueOf(app, `${id}_model_dropdown`) ?? ""));
                if (!box.checked || idle) return [];
                return [{number, range: id === null ? [0, 1] : rangeOf(app, id)}];
            });
        }
        return null;
    }

    // The most steps that a pass of the tab will take; null where that is not known.
    function readSteps(app, tab) {
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

    class Badge {
        constructor(tab) {
            this.tab = tab;
            this.id = `${tab}_cross_controlnet`;
            this.element = null;
        }

        update(app) {
            const header = app.querySelector(`#${this.id} .label-wrap`);
            const label = header?.querySelector("span");
            if (!label) return;
            const {text, warns} = badgeText(this.read(app));
            if (!text) {
                this.detach();
                return;
            }
            if (this.element?.parentNode !== header) {
                header.querySelectorAll(".ccn-badge").forEach((old) => old.remove());
                this.detach();
                this.element = document.createElement("span");
                this.element.className = "ccn-badge";
                header.insertBefore(this.element, label.nextSibling);
            }
            if (this.element.textContent !== text) this.element.textContent = this.element.title = text;
            this.element.classList.toggle("ccn-warns", warns);
        }

        detach() {
            this.element?.remove();
            this.element = null;
        }

        read(app) {
            if (!enableBox(app, this.id)?.checked) return {enabled: false};
            const units = readUnits(app, this.tab);
            return {
                enabled: true,
                units: units && units.length,
                on: units && units.map(({number}) => number),
                ranges: units && units.map(({range}) => range),
                sums: /^sum\b/i.test(valueOf(app, `${this.id}_fusion`) ?? ""),
                injects: isChecked(app, `${this.id}_inject`),
                showsMask: isChecked(app, `${this.id}_show_mask`),
                foreground: unitOf(app, `${this.id}_foreground_unit`),
                background: unitOf(app, `${this.id}_background_unit`),
                source: valueOf(app, `${this.id}_mask_source`),
                hasMask: readMask(app, `${this.id}_mask_image`),
                word: valueOf(app, `${this.id}_foreground_word`),
                words: this.readWords(app),
                startStep: numberOf(app, `${this.id}_start_step`),
                startLayer: numberOf(app, `${this.id}_start_layer`),
                steps: readSteps(app, this.tab),
            };
        }

        // The words of the prompt, read again only when it changes. Styles add words unseen, and
        // the hires pass may have a prompt of its own.
        readWords(app) {
            const prompt = valueOf(app, `${this.tab}_prompt`);
            const more = app.querySelector(`#${this.tab}_styles .token`)
                ?? (this.tab === "txt2img" && valueOf(app, "hires_prompt"));
            if (prompt === null || more) return null;
            const comments = ccn.Picker.stripsComments();
            if (prompt !== this.prompt || comments !== this.comments) {
                [this.prompt, this.comments] = [prompt, comments];
                this.words = ccn.selection.wordsOf(prompt, comments);
            }
            return this.words;
        }
    }

    ccn.badgeText = badgeText;
    ccn.Badge = Badge;
})(globalThis.crossControlNet ??= {});
