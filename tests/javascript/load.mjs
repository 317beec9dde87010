// Loads the page's scripts that need no page, in the order in which a WebUI does.
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const SCRIPTS = [
    "badge", "judge", "layers", "page", "picker", "problems", "prompt", "rows", "selection", "sentence", "state",
];
for (const name of ["", ...SCRIPTS.map((script) => `_${script}`)]) {
    require(`../../javascript/cross_controlnet${name}.js`);
}

export const ccn = globalThis.crossControlNet;
