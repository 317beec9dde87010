// A page reduced to what the scripts ask of one: elements, and the selectors that they use.

const PART = /([a-z]+)|#([\w-]+)|\.([\w-]+)|\[(\w+)(?:(\$?)=([\w-]+))?\]|:not\(([^)]+)\)|:(checked)/g;

class Element {
    constructor(tag, attributes, children) {
        Object.assign(this, { tag, attributes, children, parent: null });
        for (const child of children) child.parent = this;
    }

    get id() { return this.attributes.id ?? ""; }
    get value() { return this.attributes.value ?? ""; }
    get checked() { return this.attributes.checked ?? false; }
    getAttribute(name) { return this.attributes[name] ?? null; }

    fits(simple) {
        for (const [, tag, id, name, attribute, ends, value, not, checked] of simple.matchAll(PART)) {
            const own = this.attributes[attribute];
            const fine = tag ? this.tag === tag
                : id ? this.id === id
                : name ? (this.attributes.class ?? "").split(" ").includes(name)
                : not ? !this.fits(not)
                : checked ? this.checked
                : own !== undefined && (!value || (ends ? own.endsWith(value) : own === value));
            if (!fine) return false;
        }
        return true;
    }

    closest(simple) {
        return this.fits(simple) ? this : this.parent?.closest(simple) ?? null;
    }

    matches(selector) {
        return selector.split(/,\s*/).some((one) => {
            const parts = one.trim().split(/\s+/);
            if (!this.fits(parts.pop())) return false;
            let above = this.parent;
            while (parts.length && above) {
                if (above.fits(parts.at(-1))) parts.pop();
                above = above.parent;
            }
            return !parts.length;
        });
    }

    querySelectorAll(selector) {
        return this.children.flatMap((child) => [
            ...(child.matches(selector) ? [child] : []), ...child.querySelectorAll(selector),
        ]);
    }

    querySelector(selector) {
        return this.querySelectorAll(selector)[0] ?? null;
    }
}

export const make = (tag, attributes = {}, ...children) => new Element(tag, attributes, children);

// The components as every gradio makes them: a block with the id, and a field in it.
const block = (id, ...fields) => make("div", { id }, ...fields);
export const text = (id, value) => block(id, make("textarea", { value }));
export const dropdown = (id, value) => block(id, make("input", { role: "listbox", value }));
export const slider = (id, value) =>
    block(id, make("input", { type: "number", value: String(value) }), make("input", { type: "range" }));
export const checkbox = (id, checked, more = {}) =>
    make("div", { id, ...more }, make("input", { type: "checkbox", checked }));
