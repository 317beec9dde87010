// The word of one row: a field for it, and the words of the prompt as chips beside it.
(function (ccn) {
    "use strict";

    const HINT = "Click to choose, click a neighbour to make a phrase, click again to remove. "
        + "Shift: up to this word. Ctrl: this word only.";
    const EMPTY = "The words of the prompt appear here.";

    class Picker {
        // `root` is the element that it fills; `write` takes the word that was chosen or typed.
        constructor(tab, root, write) {
            this.tab = tab;
            this.write = write;
            this.root = root;
            this.root.translate = false;
        }

        // Bring the chips up to date; costs next to nothing while they are out of sight or nothing
        // has changed.
        update(app, word, automatic) {
            const {stripsComments} = ccn.page;
            const prompt = app.querySelector(`#${this.tab}_prompt textarea`);
            if (!prompt || !this.root.getClientRects().length) return;
            if (!this.input) this.fill();
            const hint = automatic ? `automatic (last: ${automatic})` : "automatic";
            if (this.input.placeholder !== hint) this.input.placeholder = hint;
            const comments = stripsComments();
            if (prompt.value !== this.prompt || comments !== this.comments) {
                [this.prompt, this.comments, this.word] = [prompt.value, comments, null];
                this.words = ccn.selection.wordsOf(this.prompt, comments);
                this.build();
            }
            if (word !== this.word) {
                this.word = word;
                // A blank behind the word is not part of it, and the next one is being typed.
                if (ccn.layers.tidy(this.input.value) !== ccn.layers.tidy(word)) this.input.value = word;
                this.mark();
            }
        }

        fill() {
            const {make} = ccn.page;
            this.input = make("input", "ccn-field");
            this.input.type = "text";
            this.input.setAttribute("aria-label", "The word that names what is in front");
            this.input.addEventListener("input", () => this.write(this.input.value));
            this.chips = make("div", "ccn-chips");
            this.chips.setAttribute("role", "toolbar");
            this.chips.setAttribute("aria-label", "Words of the prompt");
            this.chips.title = HINT;
            this.chips.addEventListener("click", (event) => this.onClick(event));
            this.chips.addEventListener("keydown", (event) => this.onKey(event));
            this.root.replaceChildren(this.input, this.chips);
        }

        build() {
            const {make} = ccn.page;
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
            // The sentence above the rows says it in words.
            this.input.classList.toggle("ccn-missing", missing);
            this.input.setAttribute("aria-invalid", String(missing));
        }

        onClick(event) {
            const button = event.target.closest(".ccn-chip");
            if (!button) return;
            const only = event.ctrlKey || event.metaKey;
            const mode = only ? "only" : event.shiftKey ? "extend" : "click";
            const index = Number(button.dataset.index);
            this.focus(index);
            this.word = ccn.selection.choose(this.words, this.input.value, index, mode);
            this.input.value = this.word;
            this.write(this.word);
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

    ccn.Picker = Picker;
})(globalThis.crossControlNet ??= {});
