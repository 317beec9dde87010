// A page reduced to what the scripts ask of one: elements, and the selectors that they use.

const PART = /([a-z]+)|#([\w-]+)|\.([\w-]+)|\[([\w-]+)(?:(\$?)=([\w-]+))?\]|:not\(([^)]+)\)|:(checked)/g;

class Element {
    constructor(tag, attributes, children) {
        Object.assign(this, { tag, attributes, children, parent: null });
        for (const child of children) child.parent = this;
    }

    get id() { return this.attributes.id ?? ""; }
    get value() { return this.attributes.value ?? ""; }
    get checked() { return this.attributes.checked ?? false; }
    get textContent() { return this.attributes.text ?? this.children.map((one) => one.textContent).join(""); }
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

// A ControlNet unit as the WebUIs show it.
export function unit(number, {on = true, weight = 1, model = "canny [1]", range = [0, 1], slim = false,
    module = "none", tab = "txt2img"} = {}) {
    const id = `${tab}_controlnet_ControlNet-${number}_controlnet`;
    const ends = slim
        ? [make("div", { id: `${id}_control_step_slider` },
            // gradio_rangeslider has the later end first.
            ...[...range].reverse().map((end) => make("input", { type: "number", value: String(end) })))]
        : [slider(`${id}_start_control_step_slider`, range[0]), slider(`${id}_ending_control_step_slider`, range[1])];
    return make("div", {}, checkbox(`${id}_enable_checkbox`, on, { class: "cnet-unit-enabled" }),
        dropdown(`${id}_preprocessor_dropdown`, module), dropdown(`${id}_model_dropdown`, model),
        slider(`${id}_control_weight_slider`, weight), ...ends);
}

const TITLES = { fusion: { "PixFusion + ChannelFusion": "pix+channel", "plain sum": "sum", average: "mean",
    "layers (each unit its place)": "layers" },
    outside_places: { "all are added up": "sum", "PixFusion + ChannelFusion (the paper)": "pix+channel" },
    mask_source: { "the word's attention": "word", "a painted mask": "image" } };

// A tab as a WebUI with ControlNet shows it, with some of its values changed.
export function tabOf(changes = {}, tab = "txt2img") {
    const on = {
        enabled: true, prompt: "a red star on the moon", word: "", layers: "", inject: true, show_mask: false,
        fusion: "PixFusion + ChannelFusion", foreground: "auto", background: "auto",
        source: "the word's attention", step: "auto", layer: 0, steps: 20, sampler: "Euler",
        units: [unit(0), unit(1), unit(2, { on: false, model: "None" })], editor: [], styles: [],
        hires: false, hiresSteps: 0, hiresPrompt: "", strength: 0.75, info: "", tabs: [], hosted: true, ...changes,
    };
    const id = `${tab}_cross_controlnet`;
    const tabs = on.tabs.map((text) => make("button", { text }));
    return make("body", {},
        text(`${tab}_prompt`, on.prompt), make("div", { id: `${tab}_styles` }, ...on.styles),
        text("hires_prompt", on.hiresPrompt), slider(`${tab}_denoising_strength`, on.strength),
        slider(`${tab}_steps`, on.steps), dropdown(`${tab}_sampling`, on.sampler),
        checkbox("txt2img_hr-checkbox", on.hires), slider("txt2img_hires_steps", on.hiresSteps),
        ...(on.hosted ? [make("div", { id: `${tab}_controlnet` }, ...tabs, ...on.units)] : []),
        make("div", { id: `html_info_${tab}`, text: on.info }),
        make("div", { id: `${id}_head` }, make("div", { class: "ccn-units", "data-titles": JSON.stringify(TITLES) })),
        checkbox(`${id}-checkbox`, on.enabled), checkbox(`${id}_inject`, on.inject),
        checkbox(`${id}_show_mask`, on.show_mask), dropdown(`${id}_fusion`, on.fusion),
        dropdown(`${id}_outside_places`, on.outside ?? "all are added up"),
        dropdown(`${id}_foreground_unit`, on.foreground), dropdown(`${id}_background_unit`, on.background),
        dropdown(`${id}_mask_source`, on.source), text(`${id}_foreground_word`, on.word),
        text(`${id}_layers`, on.layers),
        dropdown(`${id}_start_step`, String(on.step)), slider(`${id}_start_layer`, on.layer),
        make("div", { id: `${id}_mask_image` }, ...on.editor));
}
