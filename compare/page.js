// Pictures enlarge on a click; which is best in a row is counted in the text to paste.
const dialog = document.querySelector("dialog");
const text = document.querySelector("textarea");
const whole = text.value;

for (const button of document.querySelectorAll(".zoom")) {
    button.addEventListener("click", () => {
        const large = dialog.querySelector("img");
        const small = button.querySelector("img");
        large.src = small.src;
        large.alt = small.alt;
        dialog.showModal();
    });
}
dialog.addEventListener("click", () => dialog.close());

document.addEventListener("change", () => {
    const counts = new Map();
    for (const choice of document.querySelectorAll("input:checked")) {
        counts.set(choice.value, (counts.get(choice.value) ?? 0) + 1);
    }
    const rows = document.querySelectorAll("fieldset").length;
    const said = [...counts].map(([name, count]) => `${name} ${count}`).join(", ");
    const judged = `Judged by eye, best of each row: ${said} (of ${rows} rows)`;
    text.value = counts.size ? whole.replace(text.dataset.unjudged, () => judged) : whole;
});

document.querySelector(".copy").addEventListener("click", async (event) => {
    text.select();
    try {
        await navigator.clipboard.writeText(text.value);
        event.target.textContent = "Copied";
    } catch {
        // A page from a file may not use the clipboard: the text is selected for Ctrl-C.
        event.target.textContent = document.execCommand("copy") ? "Copied" : "Press Ctrl-C";
    }
});
