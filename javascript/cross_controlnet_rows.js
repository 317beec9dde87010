// One row for each enabled ControlNet unit: whether it is in front or behind, and its word. They
// change the accordion's own controls and show what these hold.
(function (ccn) {
    "use strict";

    const LABELS = {front: "in front", behind: "behind"};
    const HELP = {
        front: "This unit shows the object, which the word beside it names.",
        behind: "This unit shows everything else.",
    };

    // What the rows show of a state: {number, title, role, note, hasWord} for each unit; none where
    // the units are unknown.
    function rowsOf(state) {
        if (!state.enabled || !state.units) return [];
        return state.units.map((unit) => {
            const role = unit.why ? "apart" : state.roles?.get(unit.number) ?? "";
            const leads = role === "front" && (state.injects || state.showsMask);
            return {
                number: unit.number,
                title: `Unit ${unit.shown}${unit.model ? `: ${unit.model}` : ""}`,
                role,
                note: unit.why ? `not fused: it ${unit.why}` : role === "fused" ? "fused only" : "",
                hasWord: leads && state.source === "word",
            };
        });
    }

    // What the two unit dropdowns shall hold after a click, by setting; what is not named stays.
    function chosen(state, number, role) {
        const fits = state.background == null || (state.background !== number
            && state.active.some((unit) => unit.number === state.background));
        const background = fits ? {} : {background_unit: "auto"};
        if (role === "front") return {foreground_unit: String(number), ...background};
        if (state.roles?.get(number) === "fused") return {background_unit: "auto"};
        // Somebody has to be in front: the first of the others.
        const other = state.active.find((unit) => unit.number !== number);
        return other ? {foreground_unit: String(other.number), background_unit: "auto"} : {};
    }

    class Rows {
        constructor(tab) {
            this.tab = tab;
            this.id = `${tab}_cross_controlnet`;
            this.rows = [];
        }

        update(app, state) {
            const root = app.querySelector(`#${this.id}_head .ccn-units`);
            if (!root) return;
            this.state = state;
            const wanted = rowsOf(state);
            const key = JSON.stringify(wanted.map(({number, title, note}) => [number, title, note]));
            if (root !== this.root || key !== this.key) {
                [this.root, this.key] = [root, key];
                this.rows = wanted.map((row) => this.build(app, row));
                root.replaceChildren(...this.rows.map((row) => row.element));
            }
            wanted.forEach((row, i) => this.show(app, row, this.rows[i]));
        }

        // Leave the plain controls under Advanced, as if the rows had never been.
        detach() {
            this.root?.replaceChildren(
                document.createTextNode("Which unit is in front, and its word: under Advanced."),
            );
            [this.root, this.rows] = [null, []];
        }

        build(app, {number, title, note}) {
            const {make} = ccn.page;
            const element = make("div", "ccn-unit");
            element.setAttribute("role", "group");
            element.setAttribute("aria-label", title);
            const name = make("span", "ccn-name", title);
            name.title = title;
            element.append(name);
            const buttons = {};
            if (!note.startsWith("not fused")) {
                const roles = make("span", "ccn-roles");
                for (const [role, label] of Object.entries(LABELS)) {
                    const button = make("button", "ccn-role", label);
                    button.type = "button";
                    button.title = HELP[role];
                    button.addEventListener("click", () => this.choose(app, number, role));
                    roles.append(button);
                    buttons[role] = button;
                }
                element.append(roles);
            }
            if (note) element.append(make("span", "ccn-note", note));
            const word = make("div", "ccn-word");
            element.append(word);
            return {element, buttons, word, picker: null};
        }

        show(app, {role, hasWord}, row) {
            for (const [name, button] of Object.entries(row.buttons)) {
                button.setAttribute("aria-pressed", String(name === role));
            }
            row.word.hidden = !hasWord;
            if (!hasWord) {
                row.word.replaceChildren();
                row.picker = null;
                return;
            }
            row.picker ??= new ccn.Picker(this.tab, row.word);
            row.picker.update(app, this.state);
        }

        choose(app, number, role) {
            if (this.state.roles?.get(number) === role) return;
            for (const [name, text] of Object.entries(chosen(this.state, number, role))) {
                ccn.page.setChoice(app, `${this.id}_${name}`, text);
            }
        }
    }

    ccn.rows = {rowsOf, chosen};
    ccn.Rows = Rows;
})(globalThis.crossControlNet ??= {});
