// How a prompt is cut into words. What also exists in Python is compared by test_javascript.py.
import assert from "node:assert/strict";
import { test } from "node:test";

import { ccn } from "./load.mjs";

const { parseWeights, readPrompt } = ccn.prompt;
const { wordsOf } = ccn.selection;

const chips = (prompt, comments) => wordsOf(prompt, comments).chips.map((chip) => chip.text);
const texts = (atoms) => atoms.map((atom) => atom.text).join(" ");

const CHIPS = [
    ["", []],
    ["  \n ,,, ... 42 !", []],
    ["a red star, on the moon", ["red", "star", "moon"]],
    ["(red star:1.2), [a blue moon], ((green)) sea", ["red", "star", "blue", "moon", "green", "sea"]],
    ["star \\(red\\)", ["star", "red"]],
    ["a star <lora:add_detail:0.8><hypernet:x:1> sea", ["star", "sea"]],
    ["star BREAK moon", ["star", "moon"]],
    ["red star AND blue moon :0.7 AND sea:1", ["red", "star", "blue", "moon", "sea"]],
    ["a [cat:dog:0.5] asleep", ["cat", "dog", "asleep"]],
    ["a [cat:12] asleep", ["cat", "asleep"]],
    ["a [cat::0.3] asleep", ["cat", "asleep"]],
    ["a [red|blue|] [[cat|dog]:sea:.5]", ["red", "blue", "cat", "dog", "sea"]],
    ["[(star:1.2):[moon:sun:3]:0.5]", ["star", "moon", "sun"]],
    ["[star:moon:soon]", ["star", "moon", "soon"]],
    ["1girl, 3d render, well-lit", ["girl", "d", "render", "well", "lit"]],
    ["赤い星と猫, ein größerer Bär, étoile", ["赤い", "星", "猫", "ein", "größerer", "Bär", "étoile"]],
    ["赤い星 over a field", ["赤い", "星", "field"]],
    ["红色的星星，在田野上。", ["红色", "星星", "田野上"]],
    ["ดาวสีแดง on a hill", ["ดาว", "สี", "แดง", "hill"]],
    ["빨간 별이 들판 위에", ["빨간", "별이", "들판", "위에"]],
    ["🌟🌙, 👩🏽 and 👩‍🚀", ["🌟", "🌙", "👩🏽", "👩‍🚀"]],
    ["(EasyNegative:1.2) <lora:x:1>, ral-chrome_v2", ["EasyNegative", "ral", "chrome", "v"]],
    ["नमस्ते दुनिया", ["नमस्ते", "दुनिया"]],
    ["a 🌟 star 👩‍🚀", ["🌟", "star", "👩‍🚀"]],
    ["<b>bold</b> & \"quoted\"", ["b", "bold", "b", "quoted"]],
    ["a man's hat", ["man", "hat"]],
    ["[[[((( star", ["star"]],
    ["))] star ]:1.2)", ["star"]],
    ["ANDY breaks the SAND", ["ANDY", "breaks", "SAND"]],
];

for (const [prompt, expected] of CHIPS) {
    test(`the words of ${JSON.stringify(prompt)}`, () => assert.deepEqual(chips(prompt), expected));
}

test("without the browser's dictionaries a stretch of a script without spaces stays whole", () => {
    const { Segmenter } = Intl;
    try {
        delete Intl.Segmenter;
        assert.deepEqual(chips("赤い星と猫, red"), ["赤い星と猫", "red"]);
    } finally {
        Intl.Segmenter = Segmenter;
    }
});

test("comments count only where the host strips them", () => {
    const prompt = "star # not the moon\nsea";
    assert.deepEqual(chips(prompt, true), ["star", "sea"]);
    assert.deepEqual(chips(prompt, false), ["star", "moon", "sea"]);
});

test("every choice of prompt editing is read as the model will see it", () => {
    const { variants } = readPrompt("a [red:blue:0.5] star, [sun|moon|sea]");
    assert.deepEqual(variants.map(texts), [
        "a red star , sun", "a blue star , moon", "a red star , sea",
    ]);
    assert.deepEqual(readPrompt("a [red] star").variants, []);
});

test("words do not meet across AND, BREAK and options, but across weights", () => {
    const linked = (prompt) => wordsOf(prompt).chips.map((chip) => chip.linked);
    assert.deepEqual(linked("(red:1.2) star"), [false, true]);
    assert.deepEqual(linked("man in black"), [false, true]);
    assert.deepEqual(linked("well-lit mr.bean"), [false, true, true, true]);
    for (const text of ["red, star", "red BREAK star", "red AND star", "red [star:1]", "red. star",
        "red (\\(big\\)) star", "red ★ star".replace("★", "|")]) {
        assert.equal(linked(text).at(-1), false, text);
    }
});

test("hostile prompts are read in good time", () => {
    const began = performance.now();
    for (const unit of ["[", "(", "[a:", "[a|", "\\", "(a", ":1)", "[[a:b:1]", "<lora:", "AND ",
        "BREAK ", " ", "a ", "a:", "\0", "\ud800", "é", "-", "[a:b:1] ", "星", "สี", "별이"]) {
        const { atoms, chips: found } = wordsOf(unit.repeat(30000));
        assert.ok(found.length <= 500 && atoms.length <= 20000);
    }
    assert.ok(performance.now() - began < 15000);
});

test("weights multiply as in the WebUI", () => {
    const [a, b, c] = parseWeights("(a (b:2) c:3)");
    assert.deepEqual([a, b, c].map((s) => [s.text, s.weight]), [["a ", 3], ["b", 6], [" c", 3]]);
});
