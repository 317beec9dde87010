// Keeps the header's badge, the sentence and the units' rows of both tabs up to date. Gradio sets
// values from Python without an event, so a slow clock looks besides the events; it reads a few
// values and does nothing while they stay the same.
(function (ccn) {
    "use strict";

    const PERIOD = 500; // ms between looks
    const PAUSE = 150; // ms after the last event
    const PATIENCE = 600; // looks before an accordion that never came is given up
    const FAILURES = 3;

    if (typeof document === "undefined" || ccn.update) return;

    const TABS = ["txt2img", "img2img"];
    const SCRIPTS = [
        "Badge", "Picker", "Rows", "Sentence", "judge", "layers", "page", "problems", "prompt",
        "selection", "state",
    ];
    let tabs = null;
    let misses = 0;
    let clock = null;
    let soon = null;

    // A page that is not as we know it must not suffer: what fails is taken off the page, and
    // left off when it fails again.
    function attempt(part, app, state) {
        try {
            part.update(app, state);
        } catch {
            part.failures = (part.failures ?? 0) + 1;
            part.detach();
        }
        return (part.failures ?? 0) < FAILURES;
    }

    // One tab: its state is read once, for all that is shown of it.
    class Tab {
        constructor(name) {
            this.id = `${name}_cross_controlnet`;
            this.reader = new ccn.state.Reader(name);
            this.parts = [new ccn.Badge(name), new ccn.Sentence(name), new ccn.Rows(name)];
        }

        update(app) {
            if (!app.querySelector(`#${this.id}`)) return;
            const state = this.reader.read(app);
            this.parts = this.parts.filter((part) => attempt(part, app, state));
        }

        detach() {
            for (const part of this.parts) part.detach();
        }
    }

    function update() {
        clearTimeout(soon);
        soon = null;
        if (document.hidden) return;
        const app = typeof gradioApp === "function" ? gradioApp() : document;
        const there = TABS.some((tab) => app.querySelector(`#${tab}_cross_controlnet`));
        if (!there || !SCRIPTS.every((name) => ccn[name])) {
            if (++misses >= PATIENCE) stop();
            return;
        }
        misses = 0;
        tabs ??= TABS.map((name) => new Tab(name));
        tabs = tabs.filter((tab) => attempt(tab, app) && tab.parts.length);
        if (!tabs.length) stop();
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
