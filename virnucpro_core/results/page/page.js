// What a reader does with the page: filters, charts that lead to contigs, a contig's view, keys.
"use strict";

const $ = id => document.getElementById(id);
const inputs = {
    text: $("search"),
    sample: $("f-sample"),
    length_from: $("f-length-from"),
    length_to: $("f-length-to"),
    score_from: $("f-score-from"),
    score_below: $("f-score-below"),
    evidence_from: $("f-evidence"),
};
const callButtons = [...document.querySelectorAll("[name=call]")];

// What the inputs ask for, as ContigTable.filter takes it.
function wanted() {
    const asked = { call: callButtons.find(button => button.checked)?.value };
    for (const [key, input] of Object.entries(inputs)) {
        const value = input?.value.trim();
        if (value) asked[key] = key === "text" ? value : Number(value);
    }
    return asked;
}

function ask(filter) {
    for (const [key, input] of Object.entries(inputs)) if (input) input.value = filter[key] ?? "";
    for (const button of callButtons) button.checked = button.value === (filter.call ?? "");
}

async function begin() {
    const contigs = await readContigs();
    const scroll = $("contig-table");
    const table = new ContigTable(contigs, scroll, ({ shown, wanted }) => {
        $("shown").textContent = `${number(shown.length)} of ${number(about.contigs)} contigs`;
        $("none").hidden = shown.length > 0;
        $("clear").hidden = !Object.values(wanted).some(value => value !== undefined && value !== "");
    });
    const refilter = () => table.filter(wanted());
    $("tools").addEventListener("input", refilter);
    $("tools").addEventListener("submit", event => event.preventDefault());
    $("clear").addEventListener("click", () => {
        ask({});
        refilter();
        inputs.text.focus();
    });
    $("save").addEventListener("click", () => {
        const link = make("a", {
            download: "contigs.tsv",
            href: URL.createObjectURL(new Blob([table.tsv()], { type: "text/tab-separated-values" })),
        });
        link.click();
        URL.revokeObjectURL(link.href);
    });

    // Tiles, samples and marks of the charts say in `data-show` which contigs they stand for.
    const lead = event => {
        const mark = event.target.closest?.("[data-show]");
        if (!mark || (event.type === "keydown" && event.key !== "Enter" && event.key !== " ")) return;
        event.preventDefault();
        ask(JSON.parse(mark.dataset.show));
        refilter();
        $("more").open = true;
        $("contigs").scrollIntoView();
        scroll.focus({ preventScroll: true });
    };
    document.addEventListener("click", lead);
    // In a chart Tab stops once; arrow keys go from bar to bar.
    document.addEventListener("keydown", event => {
        const bar = event.target.closest?.("svg [tabindex]");
        if (!bar) return;
        const bars = [...bar.closest("svg").querySelectorAll("[tabindex]")];
        const next = bars[bars.indexOf(bar) + { ArrowLeft: -1, ArrowRight: 1 }[event.key]];
        if (!next) return lead(event);
        event.preventDefault();
        bar.setAttribute("tabindex", -1);
        next.setAttribute("tabindex", 0);
        next.focus();
    });

    const dialog = $("contig");
    let redraw = () => {};
    let open = null; // the row that is shown
    const rowOf = hash => {
        const [, sample, name] = hash.split("/").map(decodeURIComponent);
        const which = about.samples.findIndex(one => one.sample === sample);
        return contigs.names.findIndex((one, row) => one === name && contigs.sample[row] === which);
    };
    const show = async () => {
        const row = location.hash.startsWith("#contig/") ? rowOf(location.hash) : -1;
        if (row < 0) return dialog.close();
        open = row;
        const place = table.shown.indexOf(row);
        $("contig-name").textContent = contigs.names[row];
        $("contig-sample").textContent = about.samples.length > 1 ? sampleOf(contigs, row).sample : "";
        $("contig-call").replaceChildren(chip(callOf(contigs, row)));
        $("contig-place").textContent =
            place < 0 ? "" : `${number(place + 1)} of ${number(table.shown.length)}`;
        $("before").disabled = place <= 0;
        $("after").disabled = place < 0 || place + 1 >= table.shown.length;
        if (!dialog.open) dialog.showModal();
        const drawn = await showContig($("contig-body"), contigs, row);
        if (open === row) redraw = drawn;
        $("contig-body").scrollTop = 0;
        dialog.dataset.shown = row;
    };
    const step = by => {
        const place = table.shown.indexOf(open) + by;
        if (table.shown[place] !== undefined) location.replace(addressOf(contigs, table.shown[place]));
    };
    $("before").addEventListener("click", () => step(-1));
    $("after").addEventListener("click", () => step(1));
    const shut = () => {
        history.replaceState(null, "", "#contigs");
        dialog.close();
        table.focus(table.shown.indexOf(open));
    };
    $("close").addEventListener("click", shut);
    dialog.addEventListener("click", event => event.target === dialog && shut());
    dialog.addEventListener("cancel", event => {
        event.preventDefault();
        shut();
    });
    dialog.addEventListener("keydown", event => {
        if (event.target.closest("[tabindex], input")) return;
        if (event.key === "ArrowLeft") step(-1);
        if (event.key === "ArrowRight") step(1);
    });
    addEventListener("hashchange", show);
    addEventListener("resize", () => dialog.open && redraw());

    scroll.addEventListener("keydown", event => {
        const at = Number(event.target.closest("tr")?.dataset.index ?? -1);
        const to = {
            ArrowDown: at + 1,
            ArrowUp: at - 1,
            Home: 0,
            End: table.shown.length - 1,
            PageDown: at + 12,
            PageUp: at - 12,
        }[event.key];
        if (to === undefined || !table.shown.length) return;
        event.preventDefault();
        table.focus(Math.min(Math.max(to, 0), table.shown.length - 1));
    });
    document.addEventListener("keydown", event => {
        if (event.key !== "/" || dialog.open || event.target.closest("input, select")) return;
        event.preventDefault();
        inputs.text.focus();
        inputs.text.scrollIntoView({ block: "center" });
    });
    // On paper there is no scrolling: the best of what is shown, and how many they are of.
    addEventListener("beforeprint", () => {
        const some = table.shown.slice(0, 100);
        $("printed").textContent =
            some.length < table.shown.length
                ? `The first ${number(some.length)} of these ${number(table.shown.length)} contigs.`
                : "";
        $("paper").replaceChildren(...Array.from(some, (_, index) => table.line(index)));
        redraw();
    });
    addEventListener("afterprint", () => $("paper").replaceChildren());

    if (innerWidth > 760) $("more").open = true;
    $("tools").hidden = false;
    refilter();
    document.body.dataset.ready = "yes";
    performance.mark("table");
    await show();
}

const cannot = why => {
    $("none").hidden = false;
    $("none").textContent = why;
};
if ("DecompressionStream" in window)
    begin().catch(error => {
        cannot(
            `The table of this page cannot be read (${error.message}); write the page again with virnucpro report.`,
        );
        throw error;
    });
else cannot("This browser is too old to unpack the table; one of 2023 or later shows it.");
