import assert from "node:assert/strict";
import { test } from "node:test";

import { ccn } from "./load.mjs";
import { make, tabOf, unit } from "./page.mjs";

test("nothing while the method is off", () => {
    assert.deepEqual(badge({ enabled: false }), { text: "", warns: false });
});

test("what is active", () => {
    const three = [unit(0), unit(1), unit(2)];
    assert.equal(badge({ inject: false }).text, "2 units fused");
    assert.equal(badge({ units: three }).text, "3 units fused + injection");
    assert.deepEqual(badge({ fusion: "plain sum" }), { text: "2 units summed + injection", warns: false });
});

test("without ControlNet nothing will happen, on an unknown page something may", () => {
    assert.deepEqual(badge({ hosted: false }), { text: "no ControlNet", warns: true });
    assert.deepEqual(badge({ units: [] }), { text: "on", warns: false });
});

test("without a page the scripts add one name and nothing else", () => {
    assert.deepEqual(
        Object.keys(ccn).sort(),
        ["Badge", "Picker", "Rows", "Sentence", "badgeText", "badgeTitle", "judge", "layers", "page", "problems",
            "prompt", "rows", "selection", "sentence", "shortName", "state"],
    );
});

const badge = (changes = {}, tab = "txt2img", reader = new ccn.state.Reader(tab)) =>
    ccn.badgeText(reader.read(tabOf(changes, tab)));

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
    "a mask picture": { source: "a painted mask", editor: [picture("data:image/png;base64,AA")] },
    "a picture in Forge's editor": { source: "a painted mask", editor: forge("data:image/png;base64,AA") },
    "an editor that cannot be read": { source: "a painted mask", editor: [make("canvas")] },
    "the last step": { step: 19 },
    "a start that follows the steps": { step: "auto", steps: 2 },
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

const LAYERS = "layers (each unit its place)";
const THREE = [unit(0), unit(1), unit(2)];
const TWO = { fusion: LAYERS, inject: false, units: THREE, layers: "0 star, 1 moon" };

test("layers", () => {
    assert.deepEqual(badge(TWO), { text: "3 units layered", warns: false });
    assert.deepEqual(badge({ ...TWO, inject: true }), { text: "3 units layered + injection", warns: false });
    assert.deepEqual(badge({ ...TWO, fusion: "average" }), { text: "3 units fused", warns: false });
});

const MISSING = [
    [{ ...TWO, layers: "0 star, 1 zebra" }, "3 units layered, no place for unit 1: “zebra” is not in the prompt"],
    [{ ...TWO, layers: "0 fox, 1 zebra" }, "3 units summed, no place: “fox” is not in the prompt"],
    [{ ...TWO, layers: "", word: "zebra" }, "3 units summed, no place: “zebra” is not in the prompt"],
    [{ ...TWO, prompt: "", outside: "PixFusion + ChannelFusion (the paper)" },
        "3 units fused, no place: the prompt is empty"],
    [{ ...TWO, prompt: "" }, "3 units summed, no place: the prompt is empty"],
    [{ ...TWO, steps: 1 }, "3 units summed, no place: no mask in the first step"],
    [{ ...TWO, layers: "0 star (silhouette), 1 moon", steps: 1 },
        "3 units layered, no place for unit 1: no mask in the first step"],
    [{ ...TWO, layers: "0 (all), 1 moon" }, "3 units layered, no place for unit 1"],
    [{ ...TWO, layers: "0 star, 7 moon" }, "off: unit 7 is not on"],
    [{ ...TWO, layers: "star, moon" }, "off: layers “star, moon”"],
    [{ ...TWO, layers: "0 star, 0 moon" }, "off: layers “0 star, 0 moon”"],
    [{ ...TWO, word: "moon" }, "off: two answers to who is in front"],
    [{ ...TWO, foreground: "2" }, "off: two answers to who is in front"],
    [{ ...TWO, background: "1" }, "off: foreground and background are both unit 1"],
    [{ ...TWO, layers: "0, 1 (image)" }, "off: the mask image is missing"],
    [{ ...TWO, layers: "0 star, 1 moon, 2", inject: true }, "3 units layered, no injection: no unit is behind"],
    [{ ...TWO, inject: true, step: 20 }, "3 units layered, no injection: start step 20 is beyond the last, 19"],
    [{ prompt: "" }, "2 units fused, no injection: the prompt is empty"],
    [{ prompt: "  \n" }, "2 units fused, no injection: the prompt is empty"],
    [{ prompt: "", word: "star" }, "2 units fused, no injection: the prompt is empty"],
    [{ prompt: "<lora:a:1>" }, "2 units fused, no injection: the prompt is empty"],
    [{ prompt: ", 42 !" }, "2 units fused, no injection: the prompt has no word"],
    [{ word: "zebra" }, "2 units fused, no injection: “zebra” is not in the prompt"],
    [{ word: "(zebra:1.2)" }, "2 units fused, no injection: “zebra” is not in the prompt"],
    [{ word: "x".repeat(200) }, `2 units fused, no injection: “${"x".repeat(30)}…” is not in the prompt`],
    [{ word: "<b>x</b>" }, "2 units fused, no injection: “<b>x</b>” is not in the prompt"],
    [{ fusion: "plain sum", word: "zebra" }, "2 units summed, no injection: “zebra” is not in the prompt"],
    [{ step: 20 }, "2 units fused, no injection: start step 20 is beyond the last, 19"],
    [{ step: 5, steps: 4 }, "2 units fused, no injection: start step 5 is beyond the last, 3"],
    [{ step: 50, source: "all" }, "2 units fused, no injection: start step 50 is beyond the last, 19"],
    [{ step: 25, hires: true, hiresSteps: 0 }, "2 units fused, no injection: start step 25 is beyond the last, 19"],
    [{ step: 25, hires: false, hiresSteps: 30 }, "2 units fused, no injection: start step 25 is beyond the last, 19"],
    [{ step: 0, steps: 1 }, "2 units fused, no injection: no mask in the first step"],
    [{ layer: 7 }, "2 units fused, no injection: start layer 7 is beyond the last, 6"],
    [{ foreground: "1", background: "1: depth" }, "off: foreground and background are both unit 1"],
    [{ foreground: "2" }, "off: unit 2 is not on"],
    [{ background: "7: gone" }, "off: unit 7 is not on"],
    [{ source: "a painted mask" }, "off: the mask image is missing"],
    [{ source: "a painted mask", editor: [picture("")] }, "off: the mask image is missing"],
    [{ source: "a painted mask", editor: forge() }, "off: the mask image is missing"],
    [{ source: "a painted mask", editor: forge("") }, "off: the mask image is missing"],
    [{ source: "a painted mask", inject: false, show_mask: true }, "off: the mask image is missing"],
    [{ foreground: "the first" }, "off: foreground unit “the first”"],
    [{ step: "soon" }, "off: start step “soon”"],
    [{ foreground: "1", units: [unit(0), unit(1, { model: "t2iadapter_canny" }), unit(2)] }, "off: unit 1 is not fused"],
    [{ units: [unit(0), unit(1, { model: "ip-adapter_sd15" })] }, "needs 2 units"],
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
    for (const changes of [{ prompt: "" }, { word: "zebra" }, { step: 50 }, { layer: 9 }, { source: "a painted mask" }]) {
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
    const reader = new ccn.state.Reader("txt2img");
    const on = (prompt) => badge({ prompt, word: "fox" }, "txt2img", reader).text;
    assert.match(on("a star"), /not in the prompt/);
    assert.equal(on("a fox"), GOOD);
    assert.match(on(""), /the prompt is empty/);
});

test("its tooltip is the sentence, and what injection is where the badge names it", () => {
    const title = (changes) => ccn.badgeTitle(new ccn.state.Reader("txt2img").read(tabOf(changes)));
    const meaning = "Injection: the units behind learn where the object in front is.";
    assert.equal(
        title({ word: "star" }), `Unit 0 (canny) is in front: star. Unit 1 (canny) is behind. ${meaning}`,
    );
    assert.match(title({ word: "fox" }), /“fox” is not in the prompt, so nothing will be injected: .+ Injection: /s);
    assert.match(title({ inject: false }), /the stronger wins in each place. Injection is off\.$/);
    assert.match(title({ units: [unit(0)] }), /^Only unit 0 \(canny\) can be fused\. .+ a picture\.$/);
});
