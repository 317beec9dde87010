// What a click on a word does to the foreground word, and when it counts as missing.
import assert from "node:assert/strict";
import { test } from "node:test";

import { ccn } from "./load.mjs";

const { wordsOf, choose, find, isMissing, selectedRuns, WORD_LIMIT } = ccn.selection;

// Click the chips with these texts one after the other; a leading + is shift, a leading = ctrl.
function clicks(prompt, ...names) {
    const words = wordsOf(prompt);
    let word = "";
    for (const name of names) {
        const mode = { "+": "extend", "=": "only" }[name[0]] ?? "click";
        const [text, nth = "0"] = name.replace(/^[+=]/, "").split("#");
        const all = words.chips.flatMap((chip, i) => (chip.text === text ? [i] : []));
        word = choose(words, word, all[Number(nth)], mode);
    }
    return word;
}

const MAN = "a man in black standing on a field, a red Star";

const CLICKS = [
    ["one word", MAN, ["man"], "man"],
    ["the same again clears", MAN, ["man", "man"], ""],
    ["a neighbour joins, with the words between", MAN, ["man", "black"], "man in black"],
    ["from the right too", MAN, ["black", "man"], "man in black"],
    ["the outer word leaves", MAN, ["man", "black", "man"], "black"],
    ["at the other end too", MAN, ["man", "black", "black"], "man"],
    ["three words", MAN, ["man", "black", "standing"], "man in black standing"],
    ["the middle one of three stays alone", MAN, ["man", "black", "standing", "black"], "black"],
    ["a word further off replaces", MAN, ["man", "standing"], "standing"],
    ["shift takes all up to it", MAN, ["man", "+field"], "man in black standing on a field"],
    ["ctrl takes it alone", MAN, ["man", "=black"], "black"],
    ["ctrl within a phrase", MAN, ["man", "black", "=man"], "man"],
    ["no phrase across a comma", MAN, ["field", "red"], "red"],
    ["nor with shift", MAN, ["man", "+red"], "red"],
    ["as written", MAN, ["red", "Star"], "red Star"],
    ["weights are left out", "a (red:1.3) [star], ((big)) sky", ["red", "star"], "red star"],
    ["hyphens", "well-lit room", ["well", "lit", "room"], "well-lit room"],
    ["numbers", "2 girls 3 boys", ["girls", "boys"], "girls 3 boys"],
    ["the nearest place counts", "star, star moon", ["star", "moon"], "star moon"],
    ["ampersand", "salt & pepper", ["salt", "pepper"], "salt & pepper"],
    ["white space is one blank", "red\n\n  star", ["red", "star"], "red star"],
    ["weights split words", "(red:1.3)(star:1.1)", ["red", "star"], "red star"],
    ["html is text", "<b>x y</b>", ["x", "y"], "x y"],
    ["no blanks where there are none", "赤い星 over", ["赤い", "星"], "赤い星"],
    ["with a particle between", "星と猫", ["星", "猫"], "星と猫"],
];

for (const [name, prompt, names, expected] of CLICKS) {
    test(`clicks: ${name}`, () => {
        assert.equal(clicks(prompt, ...names), expected);
        assert.ok(!expected || find(wordsOf(prompt).atoms, expected).length);
    });
}

test("every place of the word is chosen", () => {
    const words = wordsOf("red star, blue star");
    assert.deepEqual(selectedRuns(words, "STAR "), [[1, 1], [3, 3]]);
    assert.deepEqual(selectedRuns(words, "(red star:1.2),"), [[0, 1]]);
    assert.deepEqual(selectedRuns(words, ""), []);
});

test("a typed phrase may be clicked on", () => {
    const words = wordsOf(MAN);
    assert.equal(choose(words, "a man in", 0), "");
    assert.equal(choose(words, "not there", 1), "black");
});

test("a phrase does not outgrow the field", () => {
    const letters = [..."abcdefghijklmnopqrstuvwxyz"];
    const words = wordsOf(letters.map((letter) => `${letter}wordlike`).join(" "));
    assert.equal(choose(words, "awordlike", 19, "extend").length, 20 * 10 - 1);
    assert.equal(choose(words, "awordlike", 20, "extend"), "uwordlike");
    assert.deepEqual(wordsOf("x".repeat(WORD_LIMIT + 1)).chips, []);
    assert.equal(wordsOf("x".repeat(WORD_LIMIT)).chips.length, 1);
});

const MISSING = [
    ["", "star", false],
    [" ,. ", "star", false],
    ["star", "a Star, moon", false],
    ["star", "stars", true],
    ["star", "", true],
    ["star.", "(star:1.2)", false],
    ["red star", "red, star", true],
    ["red, star", "red, star", false],
    ["red star", "red AND star", true],
    ["red star", "(red:1.1) star", false],
    ["red star", "a [red:blue:0.5] star", false],
    ["blue star", "a [red:blue:0.5] star", false],
    ["red blue", "a [red:blue:0.5] star", true],
    ["detail", "star <lora:detail:1>", true],
    ["BÄR", "ein bär", false],
    ["e\u0301toile", "\u00e9toile", false],
    ["星", "赤い星", false],
    ["月", "赤い星", true],
    ["い星 over", "赤い星 over a field", false],
    ["星。", "赤い星、猫。", false],
    ["star", "赤いstar星", false],
    ["star", "starfish, superstar", true],
    ["Leucht", "Leuchtturm", true],
    ["별", "빨간 별이", false],
    ["별", "이별, 별장", true],
    ["고양이", "고양이에게는", false],
    ["나마", "नमस्ते", true],
    ["नमस", "नमस्ते", true],
    ["สี", "ดาวสีแดง", false],
    ["ส", "ดาวสีแดง", true],
    ["🌟", "🌟🌙", false],
    ["👩", "👩‍🚀", true],
    ["(red)", "star \\(red\\), moon", false],
    ["ral-chrome_v2", "a (ral-chrome_v2:1.2) star", false],
    ["🌟", "a 🌟", false],
    ["(red)", "star \\(red\\)", false],
    ["<img src=x onerror=alert(1)>", "star", true],
];

for (const [word, prompt, expected] of MISSING) {
    test(`${JSON.stringify(word)} is ${expected ? "" : "not "}missing in ${JSON.stringify(prompt)}`,
        () => assert.equal(isMissing(wordsOf(prompt), word), expected));
}

test("whatever is clicked, the word is empty or stands in the prompt and fits the field", () => {
    const pieces = ["red", "star", "a", "in", "the", ",", "(", ")", "[", "]", ":1.2)", ":", "|", "AND",
        "BREAK", "<lora:a:1>", "\\(", "well-lit", "3d", "é", "★", "猫", "'s", "0.5]", "\n", "&", ".", "\\"];
    let seed = 7;
    const random = (n) => (seed = (seed * 48271) % 2147483647) % n;
    for (let round = 0; round < 400; round++) {
        const glue = random(2) ? " " : "";
        const prompt = Array.from({ length: random(25) }, () => pieces[random(pieces.length)]).join(glue);
        const words = wordsOf(prompt);
        let word = "";
        for (let i = 0; i < 12 && words.chips.length; i++) {
            const mode = ["click", "click", "extend", "only"][random(4)];
            const index = random(words.chips.length);
            const before = word;
            word = choose(words, word, index, mode);
            assert.ok(!word || find(words.atoms, word).length, `${prompt} -> ${word}`);
            assert.ok([...word].length <= WORD_LIMIT && !isMissing(words, word));
            assert.notEqual(word, before, `a click on ${index} of ${prompt} did nothing`);
        }
    }
});
