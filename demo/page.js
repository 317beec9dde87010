// The playground's own part of the page: a file that is no picture would empty the editor that is
// given it, so it is looked at first, and what cannot be shown is refused in words.
(function () {
    'use strict';

    const known = new WeakSet(); // events that carry pictures

    async function isPicture(file) {
        try {
            (await createImageBitmap(file)).close();
            return true;
        } catch {
            return false;
        }
    }

    // The hidden button's click gives this to the status; see `page.py`.
    let refusal = '';
    window.ccnRefusal = () => refusal;

    function refuse(file) {
        const box = document.createElement('div');
        box.className = 'ccn-wrong';
        box.setAttribute('role', 'alert');
        box.textContent = `${file.name} is no picture that can be shown here (PNG, JPEG, WebP, GIF, `
            + 'BMP); nothing was changed.';
        refusal = box.outerHTML;
        document.getElementById('ccn_refused_file').click();
    }

    function pickerAround(element) {
        const block = element.closest?.('.block');
        return block?.querySelector('input[type=file][accept*=image]');
    }

    // Hold the event back, and send `anew()` in its place once every file is a picture.
    async function check(event, files, anew, target) {
        event.stopImmediatePropagation();
        event.preventDefault();
        for (const file of files) {
            if (!await isPicture(file)) {
                refuse(file);
                return false;
            }
        }
        const again = anew();
        known.add(again);
        target.dispatchEvent(again);
        return true;
    }

    document.addEventListener('change', async event => {
        const input = event.target;
        if (known.has(event) || input.type !== 'file' || !input.accept.includes('image')) return;
        const anew = () => new Event('change', {bubbles: true});
        if (!await check(event, [...input.files], anew, input)) input.value = '';
    }, true);

    document.addEventListener('drop', event => {
        const files = [...(event.dataTransfer?.files ?? [])];
        if (known.has(event) || !files.length || !pickerAround(event.target)) return;
        const dataTransfer = new DataTransfer();
        files.forEach(file => dataTransfer.items.add(file));
        const options = {bubbles: true, cancelable: true, dataTransfer};
        check(event, files, () => new DragEvent('drop', options), event.target);
    }, true);
})();
