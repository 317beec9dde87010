// Loads the page's scripts that need no page, in the order in which a WebUI does.
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
for (const name of ["", "_badge", "_picker", "_prompt", "_selection"]) {
    require(`../../javascript/cross_controlnet${name}.js`);
}

export const ccn = globalThis.crossControlNet;
