// Keeps the word picker and the header's badge of both tabs up to date. Gradio sets values from
// Python without an event, so a slow clock looks besides the events; it reads a few values and
// does nothing while they stay the same.
(function (ccn) {
    "use strict";

    const PERIOD = 500; // ms between looks
    const PAUSE = 150; // ms after the last event
    const PATIENCE = 600; // looks before an accordion that never came is given up
    const FAILURES = 3;

    if (typeof document === "undefined" || ccn.update) return;

    const tabs = ["txt2img", "img2img"];
    let parts = null;
    let misses = 0;
    let clock = null;
    let soon = null;

    // A page that is not as we know it must not suffer: what fails is taken off the page, and
    // left off when it fails again.
    function attempt(part, app) {
        try {
            part.update(app);
        } catch {
            part.failures = (part.failures ?? 0) + 1;
            part.detach();
        }
        return (part.failures ?? 0) < FAILURES;
    }

    function update() {
        clearTimeout(soon);
        soon = null;
        if (document.hidden) return;
        const app = typeof gradioApp === "function" ? gradioApp() : document;
        const there = tabs.some((tab) => app.querySelector(`#${tab}_cross_controlnet`));
        if (!there || !ccn.Badge || !ccn.Picker || !ccn.selection || !ccn.prompt) {
            if (++misses >= PATIENCE) stop();
            return;
        }
        misses = 0;
        parts ??= tabs.flatMap((tab) => [new ccn.Badge(tab), new ccn.Picker(tab)]);
        parts = parts.filter((part) => attempt(part, app));
        if (!parts.length) stop();
    }

    function poke() {
        if (clock === null) return;
        clearTimeout(soon);
        soon = setTimeout(update, PAUSE);
    }

    function start() {
        clock ??= setInterval(() => soon === null && update(), PERIOD);
        poke();
    }

    function stop() {
        clearInterval(clock);
        clock = null;
        misses = 0;
    }

    for (const name of ["input", "change", "click"]) document.addEventListener(name, poke, true);
    if (typeof onUiLoaded === "function") onUiLoaded(start);
    ccn.update = update;
    start();
})(globalThis.crossControlNet ??= {});
