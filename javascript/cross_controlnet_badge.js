// What is active, on the header of the accordion.
(function (ccn) {
    "use strict";

    // What the badge says: {text, warns}; an empty text for no badge. `units` is the number of
    // enabled ControlNet units, null where the page does not tell.
    function badgeText({enabled, units, sums, injects}) {
        if (!enabled) return {text: "", warns: false};
        if (units === null) return {text: "on", warns: false};
        if (units < 2) return {text: "needs 2 units", warns: true};
        const text = `${units} units ${sums ? "summed" : "fused"}`;
        return {text: injects ? `${text} + injection` : text, warns: false};
    }

    // The checkbox that holds whether an InputAccordion is on: the one its header shows, or the
    // hidden one behind it; null on an unknown page.
    function enableBox(app, id) {
        return app.querySelector(`#${id}-visible-checkbox`)
            ?? app.querySelector(`#${id}-checkbox input[type=checkbox]`);
    }

    // Number of enabled ControlNet units of a tab, or null. sd-webui-controlnet and the Forge
    // family keep a checkbox of this class in every unit.
    function countUnits(app, tab) {
        for (const place of [`#${tab}_controlnet`, `#${tab}_script_container`]) {
            const boxes = app.querySelectorAll(`${place} .cnet-unit-enabled input[type=checkbox]`);
            if (boxes.length) return [...boxes].filter((box) => box.checked).length;
        }
        return null;
    }

    class Badge {
        constructor(tab) {
            this.tab = tab;
            this.id = `${tab}_cross_controlnet`;
            this.element = null;
        }

        update(app) {
            const header = app.querySelector(`#${this.id} .label-wrap`);
            const label = header?.querySelector("span");
            if (!label) return;
            const {text, warns} = badgeText(this.read(app));
            if (!text) {
                this.detach();
                return;
            }
            if (this.element?.parentNode !== header) {
                header.querySelectorAll(".ccn-badge").forEach((old) => old.remove());
                this.detach();
                this.element = document.createElement("span");
                this.element.className = "ccn-badge";
                header.insertBefore(this.element, label.nextSibling);
            }
            if (this.element.textContent !== text) this.element.textContent = text;
            this.element.classList.toggle("ccn-warns", warns);
        }

        detach() {
            this.element?.remove();
            this.element = null;
        }

        read(app) {
            if (!enableBox(app, this.id)?.checked) return {enabled: false};
            // By id first: lists of selectors would search the whole page.
            const inject = app.querySelector(`#${this.id}_inject`);
            const fusion = app.querySelector(`#${this.id}_fusion`);
            const mode = fusion?.querySelector("input:checked") ?? fusion?.querySelector("input, select");
            return {
                enabled: true,
                units: countUnits(app, this.tab),
                sums: /^sum\b/i.test(mode?.value ?? ""),
                injects: Boolean(inject?.querySelector("input[type=checkbox]")?.checked),
            };
        }
    }

    ccn.badgeText = badgeText;
    ccn.Badge = Badge;
})(globalThis.crossControlNet ??= {});
