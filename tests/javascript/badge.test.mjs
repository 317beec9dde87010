import assert from "node:assert/strict";
import { test } from "node:test";

import { ccn } from "./load.mjs";
import { checkbox, dropdown, make, slider, text } from "./page.mjs";

const says = (state) => ccn.badgeText({ enabled: true, units: 2, sums: false, injects: false, ...state });

test("nothing while the method is off", () => {
    assert.deepEqual(says({ enabled: false }), { text: "", warns: false });
});

test("what is active", () => {
    assert.deepEqual(says({}), { text: "2 units fused", warns: false });
    assert.deepEqual(says({ units: 3, injects: true }), { text: "3 units fused + injection", warns: false });
    assert.deepEqual(says({ sums: true, injects: true }), { text: "2 units summed + injection", warns: false });
});

test("too few units warn, unknown ones do not", () => {
    for (const units of [0, 1]) {
        assert.deepEqual(says({ units, injects: true }), { text: "needs 2 units", warns: true });
    }
    assert.deepEqual(says({ units: null, injects: true }), { text: "on", warns: false });
});

test("without a page the scripts add one name and nothing else", () => {
    assert.deepEqual(
        Object.keys(ccn).sort(),
        ["Badge", "Picker", "badgeText", "prompt", "selection"],
    );
});

// A tab as a WebUI with ControlNet shows it, with some of its values changed.
const unit = (number, { on = true, weight = 1, model = "canny [1]", range = [0, 1], slim = false } = {}) => {
    const id = `txt2img_controlnet_ControlNet-${number}_controlnet`;
    const ends = slim
        ? [make("div", { id: `${id}_control_step_slider` },
            // gradio_rangeslider has the later end first.
            ...[...range].reverse().map((end) => make("input", { type: "number", value: String(end) })))]
        : [slider(`${id}_start_control_step_slider`, range[0]), slider(`${id}_ending_control_step_slider`, range[1])];
    return make("div", {}, checkbox(`${id}_enable_checkbox`, on, { class: "cnet-unit-enabled" }),
        dropdown(`${id}_model_dropdown`, model), slider(`${id}_control_weight_slider`, weight), ...ends);
};

function badge(changes = {}, tab = "txt2img", one = new ccn.Badge(tab)) {
    const on = {
        prompt: "a red star on the moon", word: "", inject: true, show_mask: false, fusion: "pix+channel",
        foreground: "auto", background: "auto", source: "word", step: 5, layer: 0, steps: 20, sampler: "Euler",
        units: [unit(0), unit(1), unit(2, { on: false, model: "None" })], editor: [], styles: [],
        hires: false, hiresSteps: 0, hiresPrompt: "", strength: 0.75, ...changes,
    };
    const id = `${tab}_cross_controlnet`;
    const app = make("body", {},
        text(`${tab}_prompt`, on.prompt), make("div", { id: `${tab}_styles` }, ...on.styles),
        text("hires_prompt", on.hiresPrompt), slider(`${tab}_denoising_strength`, on.strength),
        slider(`${tab}_steps`, on.steps), dropdown(`${tab}_sampling`, on.sampler),
        checkbox("txt2img_hr-checkbox", on.hires), slider("txt2img_hires_steps", on.hiresSteps),
        make("div", { id: `${tab}_controlnet` }, ...on.units),
        checkbox(`${id}-checkbox`, true), checkbox(`${id}_inject`, on.inject),
        checkbox(`${id}_show_mask`, on.show_mask), dropdown(`${id}_fusion`, on.fusion),
        dropdown(`${id}_foreground_unit`, on.foreground), dropdown(`${id}_background_unit`, on.background),
        dropdown(`${id}_mask_source`, on.source), text(`${id}_foreground_word`, on.word),
        slider(`${id}_start_step`, on.step), slider(`${id}_start_layer`, on.layer),
        make("div", { id: `${id}_mask_image` }, ...on.editor));
    return ccn.badgeText(one.read(app));
}

const GOOD = "2 units fused + injection";
const picture = (src) => make("img", { src });
const forge = (src) => [make("img", src === undefined ? {} : { src }), make("canvas", { class: "forge-drawing-canvas" })];

const FINE = {
    "the default page": {},
    "a word of the prompt": { word: "Star" },
    "a phrase with weights": { word: "(red star:1.2)," },
    "only marks, which is no word": { word: " ,. " },
    "no prompt, but no word needed": { prompt: "", source: "all" },
    "an absent word, but none needed": { word: "zebra", source: "silhouette" },
    "both units named": { foreground: "1: depth [2]", background: "0" },
    "a mask picture": { source: "image", editor: [picture("data:image/png;base64,AA")] },
    "a picture in Forge's editor": { source: "image", editor: forge("data:image/png;base64,AA") },
    "an editor that cannot be read": { source: "image", editor: [make("canvas")] },
    "the last step": { step: 19 },
    "a step that only the hires pass has": { step: 25, hires: true, hiresSteps: 30 },
    "a sampler that counts as it likes": { step: 25, sampler: "DPM adaptive" },
    "another one": { step: 25, sampler: "Restart" },
    "the last layer": { layer: 6 },
    "styles, which add words unseen": { prompt: "", styles: [make("div", { class: "token" })] },
    "a prompt of the hires pass": { word: "fox", hiresPrompt: "a fox" },
    "units that meet": { units: [unit(0, { range: [0, 0.5] }), unit(1, { range: [0.4, 1] })] },
    "the same in Forge": { units: [unit(0, { range: [0, 0.5], slim: true }), unit(1, { range: [0.4, 1], slim: true })] },
};

for (const [name, changes] of Object.entries(FINE)) {
    test(`nothing is missing: ${name}`, () => {
        assert.deepEqual(badge(changes), { text: GOOD, warns: false });
    });
}

const MISSING = [
    [{ prompt: "" }, "2 units fused, no injection: the prompt is empty"],
    [{ prompt: "  \n" }, "2 units fused, no injection: the prompt is empty"],
    [{ prompt: "", word: "star" }, "2 units fused, no injection: the prompt is empty"],
    [{ prompt: "<lora:a:1>" }, "2 units fused, no injection: the prompt is empty"],
    [{ prompt: ", 42 !" }, "2 units fused, no injection: the prompt has no word"],
    [{ word: "zebra" }, "2 units fused, no injection: “zebra” is not in the prompt"],
    [{ word: "(zebra:1.2)" }, "2 units fused, no injection: “zebra” is not in the prompt"],
    [{ word: "x".repeat(200) }, `2 units fused, no injection: “${"x".repeat(30)}…” is not in the prompt`],
    [{ word: "<b>x</b>" }, "2 units fused, no injection: “<b>x</b>” is not in the prompt"],
    [{ fusion: "sum", word: "zebra" }, "2 units summed, no injection: “zebra” is not in the prompt"],
    [{ step: 20 }, "2 units fused, no injection: start step 20 is beyond the last, 19"],
    [{ steps: 4 }, "2 units fused, no injection: start step 5 is beyond the last, 3"],
    [{ step: 50, source: "all" }, "2 units fused, no injection: start step 50 is beyond the last, 19"],
    [{ step: 25, hires: true, hiresSteps: 0 }, "2 units fused, no injection: start step 25 is beyond the last, 19"],
    [{ step: 25, hires: false, hiresSteps: 30 }, "2 units fused, no injection: start step 25 is beyond the last, 19"],
    [{ step: 0, steps: 1 }, "2 units fused, no injection: no mask in the first step"],
    [{ layer: 7 }, "2 units fused, no injection: start layer 7 is beyond the last, 6"],
    [{ foreground: "1", background: "1: depth" }, "off: foreground and background are both unit 1"],
    [{ foreground: "2" }, "off: unit 2 is not on"],
    [{ background: "7: gone" }, "off: unit 7 is not on"],
    [{ source: "image" }, "off: the mask image is missing"],
    [{ source: "image", editor: [picture("")] }, "off: the mask image is missing"],
    [{ source: "image", editor: forge() }, "off: the mask image is missing"],
    [{ source: "image", editor: forge("") }, "off: the mask image is missing"],
    [{ source: "image", inject: false, show_mask: true }, "off: the mask image is missing"],
    [{ units: [unit(0), unit(1, { weight: 0 })] }, "needs 2 units"],
    [{ units: [unit(0), unit(1, { model: "None" })] }, "needs 2 units"],
    [{ units: [unit(0), unit(1, { on: false })], prompt: "" }, "needs 2 units"],
    [{ units: [unit(0, { range: [0, 0.4] }), unit(1, { range: [0.5, 1] })] }, "the units never meet"],
    [{ units: [unit(0, { range: [0, 0.5], slim: true }), unit(1, { range: [0.5, 1], slim: true })] },
        "the units never meet"],
];

for (const [changes, expected] of MISSING) {
    const { units, editor, ...rest } = changes;
    test(`${JSON.stringify(rest).slice(0, 80)}: ${expected.slice(0, 80)}`, () => {
        assert.deepEqual(badge(changes), { text: expected, warns: true });
    });
}

test("without injection nothing is missing for it", () => {
    for (const changes of [{ prompt: "" }, { word: "zebra" }, { step: 50 }, { layer: 9 }, { source: "image" }]) {
        assert.deepEqual(badge({ ...changes, inject: false }), { text: "2 units fused", warns: false });
    }
});

test("img2img takes as many steps as its strength leaves", () => {
    const tab = (changes) => badge({ units: [], step: 5, steps: 20, ...changes }, "img2img").text;
    assert.equal(tab({ strength: 0.2 }), "on, no injection: start step 5 is beyond the last, 4");
    assert.equal(tab({ strength: 0.3 }), "on");
    globalThis.opts = { img2img_fix_steps: true };
    try {
        assert.equal(tab({ strength: 0.2 }), "on");
    } finally {
        delete globalThis.opts;
    }
});

test("it follows the prompt", () => {
    const one = new ccn.Badge("txt2img");
    const on = (prompt) => badge({ prompt, word: "fox" }, "txt2img", one).text;
    assert.match(on("a star"), /not in the prompt/);
    assert.equal(on("a fox"), GOOD);
    assert.match(on(""), /the prompt is empty/);
});
