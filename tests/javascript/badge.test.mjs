import assert from "node:assert/strict";
import { test } from "node:test";

import { ccn } from "./load.mjs";

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
