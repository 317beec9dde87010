// The words of the prompt as chips under the foreground word's text field.
(function (ccn) {
    "use strict";

    const HINT = "Click to choose, click a neighbour to make a phrase, click again to remove. "
        + "Shift: up to this word. Ctrl: this word only.";
    const EMPTY = "The words of the prompt appear here.";

    function make(tag, className, text = "") {
        const element = document.createElement(tag);
        element.className = className;
        element.textContent = text;
        return element;
    }

    function setValue(field, text) {
        field.value = text;
        if (typeof updateInput === "function") updateInput(field);
        else field.dispatchEvent(new Event("input", {bubbles: true}));
    }

    // All hosts leave out `# comments`; where that is an option, it is on at first.
    const stripsComments = () =>
        !(typeof opts === "object" && opts !== null && opts.enable_prompt_comments === false);

    class Picker {
        constructor(tab) {
            this.tab = tab;
            this.id = `${tab}_cross_controlnet_foreground_word`;
            this.root = null;
        }

        // Bring the chips up to date; costs next to nothing while the field is out of sight or
        // nothing has changed.
        update(app) {
            const block = app.querySelector(`#${this.id}`);
            const prompt = app.querySelector(`#${this.tab}_prompt textarea`);
            const field = block?.querySelector("textarea, input:not([type]), input[type=text]");
            if (!field || !prompt || !block.getClientRects().length) return;
            if (this.root?.parentNode !== block || this.field !== field) this.attach(block, field);
            const comments = stripsComments();
            if (prompt.value !== this.prompt || comments !== this.comments) {
                [this.prompt, this.comments, this.word] = [prompt.value, comments, null];
                this.words = ccn.selection.wordsOf(this.prompt, comments);
                this.build();
            }
            if (field.value !== this.word) {
                this.word = field.value;
                this.mark();
            }
        }

        attach(block, field) {
            block.querySelectorAll(".ccn-picker").forEach((old) => old.remove());
            this.detach();
            [this.field, this.prompt, this.word] = [field, null, null];
            this.root = make("div", "ccn-picker");
            this.root.translate = false;
            this.chips = make("div", "ccn-chips");
            this.chips.setAttribute("role", "toolbar");
            this.chips.setAttribute("aria-label", "Words of the prompt");
            this.chips.title = HINT;
            this.warning = make("div", "ccn-warning");
            this.warning.id = `${this.id}_warning`;
            this.warning.setAttribute("role", "status");
            this.root.append(this.warning, this.chips);
            this.chips.addEventListener("click", (event) => this.onClick(event));
            this.chips.addEventListener("keydown", (event) => this.onKey(event));
            block.append(this.root);
        }

        // Leave the plain text field, as if the picker had never been.
        detach() {
            this.root?.remove();
            this.field?.classList.remove("ccn-missing");
            this.field?.removeAttribute("aria-describedby");
            this.root = null;
        }

        build() {
            const parts = [];
            this.buttons = this.words.chips.map((chip, index) => {
                const button = make("button", "ccn-chip", chip.text);
                button.type = "button";
                button.dataset.index = index;
                button.tabIndex = index ? -1 : 0;
                if (chip.between) parts.push(make("span", "ccn-between", chip.between));
                else if (chip.cut) parts.push(make("span", "ccn-cut"));
                else if (index && !chip.linked) parts.push(make("span", "ccn-gap"));
                parts.push(button);
                return button;
            });
            if (!parts.length) parts.push(make("span", "ccn-between", EMPTY));
            this.chips.replaceChildren(...parts);
        }

        mark() {
            const runs = ccn.selection.selectedRuns(this.words, this.word);
            const chosen = new Set();
            const joined = new Set();
            for (const [first, last] of runs) {
                for (let i = first; i <= last; i++) {
                    chosen.add(i);
                    if (i > first) joined.add(i);
                }
            }
            this.buttons.forEach((button, i) => {
                button.setAttribute("aria-pressed", String(chosen.has(i)));
                const between = button.previousElementSibling;
                if (between?.classList.contains("ccn-between")) {
                    between.classList.toggle("ccn-inside", joined.has(i));
                }
            });
            const missing = ccn.selection.isMissing(this.words, this.word);
            this.field.classList.toggle("ccn-missing", missing);
            this.warning.textContent = missing
                ? `“${ccn.prompt.cleanWord(this.word)}” is not in the prompt as it is written.`
                : "";
            if (missing) this.field.setAttribute("aria-describedby", this.warning.id);
            else this.field.removeAttribute("aria-describedby");
        }

        onClick(event) {
            const button = event.target.closest(".ccn-chip");
            if (!button) return;
            const only = event.ctrlKey || event.metaKey;
            const mode = only ? "only" : event.shiftKey ? "extend" : "click";
            const index = Number(button.dataset.index);
            this.focus(index);
            setValue(this.field, ccn.selection.choose(this.words, this.field.value, index, mode));
            this.word = this.field.value;
            this.mark();
        }

        onKey(event) {
            const here = Number(event.target.dataset?.index);
            const last = this.buttons.length - 1;
            const there = {
                ArrowRight: Math.min(here + 1, last), ArrowLeft: Math.max(here - 1, 0),
                Home: 0, End: last,
            }[event.key];
            if (!(there >= 0) || event.altKey || event.ctrlKey || event.metaKey) return;
            event.preventDefault();
            this.focus(there);
        }

        // The chips are one stop for the tab key; the arrow keys go from chip to chip.
        focus(index) {
            this.buttons.forEach((button, i) => (button.tabIndex = i === index ? 0 : -1));
            this.buttons[index].focus();
        }
    }

    Picker.stripsComments = stripsComments;
    ccn.Picker = Picker;
})(globalThis.crossControlNet ??= {});
