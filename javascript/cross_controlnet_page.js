// What the page's components hold, and how their values are changed: in gradio 3 and later alike.
(function (ccn) {
    "use strict";

    // The checkbox that holds whether an InputAccordion is on: the one its header shows, or the
    // hidden one behind it; null on an unknown page.
    function enableBox(app, id) {
        return app.querySelector(`#${id}-visible-checkbox`)
            ?? app.querySelector(`#${id}-checkbox input[type=checkbox]`);
    }

    // What a component holds, as text; null where it is not there.
    function valueOf(app, id) {
        const block = app.querySelector(`#${id}`);
        const field = block?.querySelector("input:checked")
            ?? block?.querySelector("input[type=number]")
            ?? block?.querySelector("textarea, input:not([type=checkbox]), select");
        return field ? field.value : null;
    }

    const isChecked = (app, id) =>
        Boolean(app.querySelector(`#${id}`)?.querySelector("input[type=checkbox]")?.checked);

    function numberOf(app, id) {
        const value = valueOf(app, id);
        return value === null || value.trim() === "" || isNaN(value) ? null : Number(value);
    }

    const textField = (app, id) =>
        app.querySelector(`#${id}`)?.querySelector("textarea, input:not([type]), input[type=text]");

    // Put text into a field, as typing does.
    function setText(field, text) {
        field.value = text;
        if (typeof updateInput === "function") updateInput(field);
        else field.dispatchEvent(new Event("input", {bubbles: true}));
    }

    // Put text into a dropdown that takes any, as typing does: gradio 3 takes it when a key is let
    // go, later ones when the field is left.
    function setChoice(app, id, text) {
        const field = app.querySelector(`#${id} input`);
        if (!field || field.value === text) return;
        field.dispatchEvent(new Event("focus"));
        field.value = text;
        field.dispatchEvent(new Event("input", {bubbles: true}));
        field.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true}));
        field.dispatchEvent(new Event("blur"));
    }

    function make(tag, className, text = "") {
        const element = document.createElement(tag);
        element.className = className;
        element.textContent = text;
        return element;
    }

    // All hosts leave out `# comments`; where that is an option, it is on at first.
    const stripsComments = () =>
        !(typeof opts === "object" && opts !== null && opts.enable_prompt_comments === false);

    ccn.page = {
        enableBox, valueOf, isChecked, numberOf, textField, setText, setChoice, make, stripsComments,
    };
})(globalThis.crossControlNet ??= {});
