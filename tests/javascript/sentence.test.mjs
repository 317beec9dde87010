// The state of the page in words, and the units' rows.
import assert from "node:assert/strict";
import { test } from "node:test";

import { ccn } from "./load.mjs";
import { make, tabOf, unit } from "./page.mjs";

const OPENPOSE = { model: "control_v11p_sd15_openpose [cab727d4]" };
const DEPTH = { model: "control_v11f1p_sd15_depth [cfd03158]" };
const BOTH = [unit(0, OPENPOSE), unit(1, DEPTH)];

const read = (changes) => new ccn.state.Reader("txt2img").read(
    tabOf({ units: BOTH, prompt: "a dancer in the rain", ...changes }),
);

function says(changes) {
    const { parts, mood } = ccn.sentence(read(changes));
    return [parts.map((part) => part.word ?? part).join(""), mood];
}

const TWO = { fusion: "layers (each unit its place)", inject: false, layers: "0 dancer, 1 rain",
    units: [...BOTH, unit(2, { model: "canny" })] };
const EACH = "In its place each silences those behind that disagree.";
const BASE = "Unit 0 (openpose) is in front. Unit 1 (depth) is behind.";
const info = (word, prompt = "a dancer in the rain") =>
    `${prompt}Negative prompt: bad Steps: 20, CCN enabled: True, CCN word: ${word}, Version: 1`;

const GOOD = [
    [{ word: "dancer" }, "Unit 0 (openpose) is in front: dancer. Unit 1 (depth) is behind."],
    [{}, "Unit 0 (openpose) is in front; its word is chosen automatically. Unit 1 (depth) is behind."],
    [{ info: info("dancer (automatic)") }, "Unit 0 (openpose) is in front; its word is chosen automatically "
        + "(last time: dancer). Unit 1 (depth) is behind."],
    [{ info: info("star (automatic)", "a star") }, "Unit 0 (openpose) is in front; its word is chosen "
        + "automatically. Unit 1 (depth) is behind."],
    [{ word: "rain", foreground: "1: depth" }, "Unit 1 (depth) is in front: rain. Unit 0 (openpose) is behind."],
    [{ source: "a painted mask", editor: [make("img", { src: "data:" })] },
        "Unit 0 (openpose) is in front where the mask is painted. Unit 1 (depth) is behind."],
    [{ source: "all" }, "Unit 0 (openpose) is in front in the whole picture. Unit 1 (depth) is behind."],
    [{ word: "dancer", units: [...BOTH, unit(2, { model: "canny" })] },
        "Unit 0 (openpose) is in front: dancer. Units 1 (depth) and 2 (canny) are behind."],
    [{ word: "dancer", background: "1", units: [...BOTH, unit(2, { model: "canny" })] },
        "Unit 0 (openpose) is in front: dancer. Unit 1 (depth) is behind. Unit 2 (canny) is fused only."],
    [{ word: "dancer", background: "0" }, "Unit 1 (depth) is in front: dancer. Unit 0 (openpose) is behind."],
    [{ word: "dancer", units: [unit(0, { model: "t2iadapter_color" }), unit(1, DEPTH), unit(2, OPENPOSE)] },
        "Unit 1 (depth) is in front: dancer. Unit 2 (openpose) is behind. Unit 0 (t2iadapter_color) is not "
        + "fused: it is a T2I-Adapter."],
    [{ inject: false }, "Units 0 (openpose) and 1 (depth) are fused: the stronger wins in each place. "
        + "Injection is off."],
    [{ inject: false, fusion: "plain sum" }, "Units 0 (openpose) and 1 (depth) are added up as ControlNet does "
        + "it. Injection is off."],
    [{ word: "dancer", tabs: ["ControlNet Unit 1", "ControlNet Unit 2 [Depth]"] },
        "Unit 1 (openpose) is in front: dancer. Unit 2 (depth) is behind."],
    [{ ...TWO }, "Unit 0 (openpose) is in front: dancer; behind it unit 1 (depth): rain. Unit 2 (canny) is behind "
        + `all. ${EACH}`],
    [{ ...TWO, outside: "PixFusion + ChannelFusion (the paper)" }, "Unit 0 (openpose) is in front: dancer; behind it "
        + "unit 1 (depth): rain. Unit 2 (canny) is behind all. In its place each silences those behind that disagree; "
        + "elsewhere the stronger wins in each place."],
    [{ ...TWO, layers: "1 rain, 0 dancer" }, "Unit 1 (depth) is in front: rain; behind it unit 0 (openpose): "
        + `dancer. Unit 2 (canny) is behind all. ${EACH}`],
    [{ ...TWO, layers: "0 dancer, 1, 2 (silhouette)" }, "Unit 0 (openpose) is in front: dancer; behind it unit 1 "
        + `(depth) by an automatic word; behind it unit 2 (canny) where its own picture shows something. ${EACH}`],
    [{ ...TWO, layers: "0 dancer, 1 dancer" }, "Units 0 (openpose) and 1 (depth) are in front, sharing one place: "
        + `dancer. Unit 2 (canny) is behind all. ${EACH}`],
    [{ ...TWO, layers: "0 dancer, 1 dancer, 2 rain" }, "Units 0 (openpose) and 1 (depth) are in front, sharing one "
        + `place: dancer; behind them unit 2 (canny): rain. ${EACH}`],
    [{ ...TWO, layers: "0 man, 1 man", prompt: "a man and a man in the rain" }, "Unit 0 (openpose) is in front: man; "
        + "behind it unit 1 (depth): man. The prompt has man more than once: each of units 0 (openpose) and 1 (depth) "
        + `has the part where it says more. Unit 2 (canny) is behind all. ${EACH}`],
    [{ ...TWO, layers: "0 dancer, 1", source: "all" }, "Unit 0 (openpose) is in front: dancer; behind it unit 1 "
        + `(depth) in the whole picture. Unit 2 (canny) is behind all. ${EACH}`],
    [{ ...TWO, layers: "", word: "dancer" }, "Unit 0 (openpose) is in front: dancer. Units 1 (depth) and 2 (canny) "
        + "are behind. In its place it silences those behind that disagree."],
    [{ ...TWO, fusion: "PixFusion + ChannelFusion", inject: true }, "Unit 0 (openpose) is in front: dancer; behind it "
        + "unit 1 (depth): rain. Unit 2 (canny) is behind all. That is for injection only: in the fusion the stronger "
        + "wins in each place."],
    [{ ...TWO, fusion: "average", show_mask: true }, "Unit 0 (openpose) is in front: dancer; behind it unit 1 (depth): "
        + "rain. Unit 2 (canny) is behind all. That is only shown: in the fusion all are averaged."],
    [{ ...TWO, fusion: "average" }, "Units 0 (openpose), 1 (depth) and 2 (canny) are averaged. Injection is off."],
    [{ units: [] }, "It is on, and acts on two or more ControlNet units; this page does not show which are."],
];

for (const [changes, expected] of GOOD) {
    test(`it is so: ${expected}`, () => assert.deepEqual(says(changes), [expected, "good"]));
}

const FRONT = "click “in front” in the row of the unit that shows the foreground.";
const MISSING = [
    [{ hosted: false }, "There is no ControlNet on this page, so nothing will happen. Install or enable "
        + "ControlNet (for AUTOMATIC1111: the extension sd-webui-controlnet)."],
    [{ units: [unit(0, { on: false })] }, "No ControlNet unit is on. Enable two in "
        + "ControlNet above, each with a model and a picture."],
    [{ units: [BOTH[0], unit(1, { on: false })] }, "Only unit 0 (openpose) can be fused. Enable a second "
        + "ControlNet unit above, with a model and a picture."],
    [{ units: [BOTH[0], unit(1, { model: "None" })] }, "Only unit 0 (openpose) can be fused. Unit 1 is not "
        + "fused: it has no model. Enable a second ControlNet unit above, with a model and a picture."],
    [{ units: [BOTH[0], unit(1, { ...DEPTH, weight: 0 })] }, "Only unit 0 (openpose) can be fused. Unit 1 "
        + "(depth) is not fused: it has weight 0. Enable a second ControlNet unit above, with a model and a picture."],
    [{ foreground: "1", background: "1" }, `Unit 1 is chosen to be both in front and behind, so nothing will `
        + `happen: ${FRONT}`],
    [{ foreground: "2" }, "Unit 2 is chosen to be in front but is not on, so nothing will happen: enable it in "
        + `ControlNet, or ${FRONT}`],
    [{ background: "7: gone", tabs: ["ControlNet Unit 1"] }, "Unit 8 is chosen to be behind but is not on, so "
        + `nothing will happen: enable it in ControlNet, or ${FRONT}`],
    [{ source: "a painted mask" }, "The painted mask is missing, so nothing will happen: paint or upload one "
        + "under Advanced, or have the mask made from the word's attention."],
    [{ units: [unit(0, { ...OPENPOSE, range: [0, 0.3] }), unit(1, { ...DEPTH, range: [0.5, 1] })] },
        "Unit 0 (openpose) is in front. Unit 1 (depth) is behind. They are never active in the same step, so "
        + "nothing will be fused: let their control steps overlap in ControlNet."],
    [{ step: 25 }, `${BASE} Nothing will be injected: it would start at step 25, and the last is 19. Set the `
        + "injection start step to auto under Advanced."],
    [{ layer: 9 }, `${BASE} Nothing will be injected: it would start at layer 9, and the last is 6. Set the `
        + "injection start layer to 0 under Advanced."],
    [{ steps: 1 }, `${BASE} The first step has no mask yet, so nothing will be injected. Take more steps.`],
    [{ prompt: "" }, `${BASE} The prompt is empty, so nothing will be injected: type one that names what the `
        + "unit in front shows."],
    [{ prompt: "42" }, `${BASE} The prompt has no word that could name what is in front, so nothing will be `
        + "injected: type one."],
    [{ word: "zebra" }, `${BASE} “zebra” is not in the prompt, so nothing will be injected: click another of `
        + "its words in the row of the unit in front."],
    [{ ...TWO, layers: "0 zebra, 1 rain" }, "Unit 0 (openpose) is in front: zebra; behind it unit 1 (depth): rain. "
        + `Unit 2 (canny) is behind all. ${EACH} “zebra” is not in the prompt, so unit 0 (openpose) has no place: click `
        + "another of its words in the row of unit 0."],
    [{ ...TWO, layers: "0 zebra, 1 fox" }, "Unit 0 (openpose) is in front: zebra; behind it unit 1 (depth): fox. Unit 2 "
        + "(canny) is behind all. “zebra” is not in the prompt, so all are added up: click another of its words in the "
        + "row of unit 0. “fox” is not in the prompt, so all are added up: click another of its words in the row of unit 1."],
    [{ ...TWO, layers: "0 (all), 1 rain" }, "Unit 0 (openpose) is in front in the whole picture; behind it unit 1 (depth): "
        + `rain. Unit 2 (canny) is behind all. ${EACH} Unit 0 (openpose) has the whole picture, so unit 1 (depth) has no `
        + "place: move it further back."],
    [{ ...TWO, layers: "0 dancer, 5 rain" }, `Unit 5 is chosen to be in front but is not on, so nothing will happen: `
        + `enable it in ControlNet, or ${FRONT}`],
    [{ ...TWO, foreground: "1" }, "The foreground unit or word under Advanced says otherwise than the layers who is in "
        + `front, so nothing will happen: ${FRONT}`],
    [{ ...TWO, layers: "dancer" }, "The layers cannot be “dancer”, so nothing will happen. Write them under Advanced as "
        + "in 0 dancer, 1 horse."],
    [{ units: BOTH, layers: "0 dancer, 1 rain" }, "Unit 0 (openpose) is in front: dancer; behind it unit 1 (depth): rain. "
        + "That is for injection only: in the fusion the stronger wins in each place. No unit is behind, so nothing will "
        + "be injected: click “behind” in a row, or untick KV-Injection under Advanced."],
    [{ step: "soon" }, "The start step cannot be “soon”, so nothing will happen. Choose auto or a number for "
        + "it under Advanced."],
];

for (const [changes, expected] of MISSING) {
    test(`something is missing: ${expected}`, () => assert.deepEqual(says(changes), [expected, "missing"]));
}

test("while the method is off, that is said", () => {
    assert.deepEqual(says({ enabled: false }), ["Switched off: tick the box in the title to use it.", "off"]);
});

const NAMES = [
    ["control_v11p_sd15_openpose", "openpose"], ["control_v11f1e_sd15_tile.pth", "tile"],
    ["control_v11p_sd15s2_lineart_anime", "lineart_anime"], ["control_sd15_canny", "canny"],
    ["diffusers_xl_canny_full", "diffusers_xl_canny_full"], ["control_", "control_"], ["", ""],
];

for (const [model, short] of NAMES) {
    test(`a model's short name: ${model}`, () => assert.equal(ccn.shortName(model), short));
}

const rows = (changes) => ccn.rows.rowsOf(read(changes))
    .map(({ title, role, note, word }) => [title, role, note, word !== null]);

test("one row for each unit that is on, named by its model", () => {
    const ip = unit(2, { model: "ip-adapter_sd15" });
    assert.deepEqual(rows({ units: [...BOTH, ip, unit(3, { on: false })] }), [
        ["Unit 0: control_v11p_sd15_openpose", "front", "", true],
        ["Unit 1: control_v11f1p_sd15_depth", "behind", "", false],
        ["Unit 2: ip-adapter_sd15", "apart", "not fused: it is an IP-Adapter", false],
    ]);
    assert.deepEqual(rows({ enabled: false }), []);
    assert.deepEqual(rows({ units: [] }), []);
});

test("a row has a word only where one is of use", () => {
    const words = (changes) => rows(changes).map(([, , , hasWord]) => hasWord);
    assert.deepEqual(words({ foreground: "1" }), [false, true]);
    assert.deepEqual(words({ source: "all" }), [false, false]);
    assert.deepEqual(words({ inject: false }), [false, false]);
    assert.deepEqual(words({ inject: false, show_mask: true }), [true, false]);
});

test("while the same unit is chosen twice none is shown to be in front", () => {
    assert.deepEqual(rows({ foreground: "1", background: "1" }).map(([, role]) => role), ["", ""]);
});

const listed = { units: TWO.units, layers: "0 dancer, 1 rain" };
const many = { units: TWO.units };
const layered = { fusion: TWO.fusion };
const CLICKS = [
    [{}, 1, "front", { foreground_unit: "1" }],
    [{}, 0, "behind", { foreground_unit: "1", background_unit: "auto" }],
    [{ foreground: "1", background: "1" }, 0, "front", { foreground_unit: "0" }],
    [{ foreground: "1", background: "1" }, 1, "front", { foreground_unit: "1", background_unit: "auto" }],
    [{ foreground: "0", background: "1" }, 1, "front", { foreground_unit: "1", background_unit: "auto" }],
    [{ background: "7" }, 1, "front", { foreground_unit: "1", background_unit: "auto" }],
    [{ background: "1", units: [...BOTH, unit(2)] }, 2, "behind", { background_unit: "auto" }],
    [many, 1, "front", { layers: "0, 1", foreground_unit: "auto", foreground_word: "" }],
    [{ ...many, word: "dancer, in red", background: "1" }, 1, "front",
        { layers: "0 dancer%2C in red, 1", foreground_unit: "auto", foreground_word: "", background_unit: "auto" }],
    [{ ...many, background: "1" }, 2, "front", { layers: "0, 2", foreground_unit: "auto", foreground_word: "" }],
    [listed, 2, "front", { foreground_unit: "2", foreground_word: "dancer", layers: "" }],
    [{ ...listed, ...layered }, 2, "front",
        { layers: "0 dancer, 1 rain, 2", foreground_unit: "auto", foreground_word: "" }],
    [layered, 1, "front", { layers: "0, 1", foreground_unit: "auto", foreground_word: "" }],
    [listed, 0, "behind", { layers: "", foreground_word: "rain", foreground_unit: "1" }],
    [{ ...listed, layers: "0 dancer (silhouette), 1 rain" }, 1, "behind",
        { layers: "0 dancer (silhouette)", foreground_unit: "auto", foreground_word: "" }],
    [{ ...listed, layers: "0 dancer, 5 rain" }, 1, "front",
        { layers: "0 dancer, 1", foreground_unit: "auto", foreground_word: "" }],
    [{ ...listed, foreground: "2" }, 0, "front",
        { layers: "0 dancer, 1 rain", foreground_unit: "auto", foreground_word: "" }],
];

for (const [changes, number, role, expected] of CLICKS) {
    const { foreground = "auto", background = "auto" } = changes;
    test(`a click on ${role} of unit ${number} with ${foreground} and ${background}`, () => {
        assert.deepEqual(ccn.layers.chosen(read(changes), number, role), expected);
    });
}

test("several in front stand first, in their order, each with its word", () => {
    const shown = (changes) => ccn.rows.rowsOf(read(changes))
        .map(({ number, role, word, moves }) => [number, role, word, moves]);
    assert.deepEqual(shown({ ...TWO, layers: "2 rain, 0 (silhouette)" }), [
        [2, "front", "rain", [false, true]], [0, "front", null, [true, false]], [1, "behind", null, null],
    ]);
    assert.deepEqual(shown({ ...TWO, layers: "2 rain" }).map(([number]) => number), [0, 1, 2]);
});

const MOVES = [
    ["0 dancer, 1 rain", 1, -1, "1 rain, 0 dancer"], ["0 dancer, 1 rain (threshold 0.5)", 0, 1, "1 rain (threshold 0.5), 0 dancer"],
    ["2, 0, 1", 2, 1, "0, 2, 1"], ["0 dancer, 1 rain", 0, -1, undefined], ["0 dancer, 1 rain", 2, -1, undefined],
];

for (const [layers, number, by, expected] of MOVES) {
    test(`unit ${number} of ${layers} by ${by}`, () => {
        assert.equal(ccn.layers.moved(read({ ...TWO, layers }), number, by).layers, expected);
    });
}

test("a word is written where its unit stands", () => {
    assert.deepEqual(ccn.layers.worded("", 0, "fox"), { foreground_word: "fox" });
    assert.deepEqual(ccn.layers.worded("1 a, 0 b (silhouette)", 0, "the (red) fox; 5%"),
        { layers: "1 a, 0 the %28red%29 fox%3B 5%25 (silhouette)" });
});
