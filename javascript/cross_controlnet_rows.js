// One row for each enabled ControlNet unit: whether it is in front or behind, its word, and where there
// are several in front, their order. They change the accordion's own controls and show what these hold.
(function (ccn) {
    "use strict";

    const LABELS = {front: "in front", behind: "behind"};
    const HELP = {
        front: "This unit shows an object, which the word beside it names.",
        behind: "This unit shows everything else.",
    };
    const FIELDS = ["foreground_word", "layers"]; // controls of plain text
    const MOVES = [[-1, "↑", "Further to the front"], [1, "↓", "Further back"]];

    // What the rows show of a state: {number, title, role, note, word, moves} for each unit; none where
    // the units are unknown. `word` is null where none is of use, and `moves` says whether the unit
    // can go further to the front and further back. Several in front stand first, in their order.
    function rowsOf(state) {
        if (!state.enabled || !state.units) return [];
        const {fronts, roles, units} = state;
        const order = fronts.map(({number}) => number);
        const several = Boolean(roles) && order.length > 1;
        const masked = state.injects || state.showsMask || state.fusion === "layers";
        const rank = ({number}) => (several && order.includes(number) ? order.indexOf(number) : Infinity);
        const rows = units.map((unit) => {
            const role = unit.why ? "apart" : roles?.get(unit.number) ?? "";
            const front = role === "front" && fronts.find(({number}) => number === unit.number);
            return {
                number: unit.number,
                title: `Unit ${unit.shown}${unit.model ? `: ${unit.model}` : ""}`,
                role,
                note: unit.why ? `not fused: it ${unit.why}` : role === "fused" ? "fused only" : "",
                word: masked && front && front.source === "word" ? front.word : null,
                moves: front && several ? [rank(unit) > 0, rank(unit) < order.length - 1] : null,
            };
        });
        return several ? rows.sort((one, other) => {
            const [first, second] = [rank(one), rank(other)];
            return first === second ? one.number - other.number : first - second;
        }) : rows;
    }

    class Rows {
        constructor(tab) {
            this.tab = tab;
            this.id = `${tab}_cross_controlnet`;
            this.rows = new Map();
        }

        update(app, state) {
            const root = app.querySelector(`#${this.id}_head .ccn-units`);
            if (!root) return;
            this.state = state;
            const wanted = rowsOf(state);
            const known = wanted.map(({number, title, note}) => [number, title, note]).sort();
            const key = JSON.stringify(known);
            if (root !== this.root || key !== this.key) {
                [this.root, this.key] = [root, key];
                this.rows = new Map(wanted.map((row) => [row.number, this.build(app, row)]));
            }
            const elements = wanted.map(({number}) => this.rows.get(number).element);
            if (elements.length !== root.children.length
                || elements.some((element, i) => element !== root.children[i])) {
                const focus = document.activeElement; // moving an element takes it away
                root.replaceChildren(...elements);
                if (root.contains(focus)) focus.focus();
            }
            for (const row of wanted) this.show(app, row, this.rows.get(row.number));
        }

        // Leave the plain controls under Advanced, as if the rows had never been.
        detach() {
            this.root?.replaceChildren(
                document.createTextNode("Which unit is in front, and its word: under Advanced."),
            );
            [this.root, this.rows] = [null, new Map()];
        }

        build(app, {number, title, note}) {
            const {make} = ccn.page;
            const element = make("div", "ccn-unit");
            element.setAttribute("role", "group");
            element.setAttribute("aria-label", title);
            const name = make("span", "ccn-name", title);
            name.title = title;
            element.append(name);
            const [buttons, moves] = [{}, []];
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
                for (const [by, sign, help] of MOVES) {
                    const button = make("button", "ccn-move", sign);
                    button.type = "button";
                    button.title = help;
                    button.setAttribute("aria-label", `${help}: ${title}`);
                    button.addEventListener("click", () => this.move(app, number, by));
                    moves.push(button);
                }
                roles.append(...moves);
                element.append(roles);
            }
            if (note) element.append(make("span", "ccn-note", note));
            const word = make("div", "ccn-word");
            element.append(word);
            return {element, buttons, moves, word, picker: null};
        }

        show(app, {number, role, word, moves}, row) {
            for (const [name, button] of Object.entries(row.buttons)) {
                button.setAttribute("aria-pressed", String(name === role));
            }
            // Kept enabled at the ends: a button that is shut loses the focus.
            row.moves.forEach((button, i) => {
                button.hidden = !moves;
                button.setAttribute("aria-disabled", String(!moves?.[i]));
            });
            row.word.hidden = word === null;
            if (word === null) {
                row.word.replaceChildren();
                row.picker = null;
                return;
            }
            row.picker ??= new ccn.Picker(this.tab, row.word, (text) => this.name(app, number, text));
            row.picker.update(app, word, this.state.fronts.length === 1 ? this.state.automatic : "");
        }

        choose(app, number, role) {
            if (this.state.roles?.get(number) === role) return;
            this.hold(app, ccn.layers.chosen(this.state, number, role));
        }

        move(app, number, by) {
            this.hold(app, ccn.layers.moved(this.state, number, by));
        }

        name(app, number, word) {
            const text = ccn.page.valueOf(app, `${this.id}_layers`);
            this.hold(app, ccn.layers.worded(text, number, word));
        }

        // Put these values into the accordion's own controls, and show at once what they mean.
        hold(app, values) {
            for (const [name, value] of Object.entries(values)) {
                const field = FIELDS.includes(name) && ccn.page.textField(app, `${this.id}_${name}`);
                if (field && field.value !== value) ccn.page.setText(field, value);
                if (!FIELDS.includes(name)) ccn.page.setChoice(app, `${this.id}_${name}`, value);
            }
            ccn.update?.();
        }
    }

    ccn.rows = {rowsOf};
    ccn.Rows = Rows;
})(globalThis.crossControlNet ??= {});
