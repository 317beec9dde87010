// What will happen, on the header of the accordion, as far as the page can know.
(function (ccn) {
    "use strict";

    class Badge {
        constructor(tab) {
            this.id = `${tab}_cross_controlnet`;
            this.element = null;
        }

        update(app, state) {
            const header = app.querySelector(`#${this.id} .label-wrap`);
            const label = header?.querySelector("span");
            if (!label) return;
            const {text, warns} = ccn.badgeText(state);
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
            const title = ccn.badgeTitle(state);
            if (this.element.textContent !== text) this.element.textContent = text;
            if (this.element.title !== title) this.element.title = title;
            this.element.classList.toggle("ccn-warns", warns);
        }

        detach() {
            this.element?.remove();
            this.element = null;
        }
    }

    ccn.Badge = Badge;
})(globalThis.crossControlNet ??= {});
