// The view of one contig: what its call rests on, in words, figures and its windows' scores.
"use strict";

const within = p => Math.min(Math.max(p, 1e-6), 1 - 1e-6);
const logit = p => Math.log(within(p) / (1 - within(p)));

// Where a window of a contig begins, as sequences/windows.py lays them.
function windowStart(number, length, window) {
    const count = Math.ceil(length / window),
        surplus = count * window - length;
    const base = Math.floor(surplus / count),
        longer = Math.min(count - 1, surplus - base * (count - 1));
    return (number - 1) * (window - base) - Math.min(number - 1, longer);
}

// Windows with a score, in order, each with its frames. By both halves of the input or by one alone
// it has a score, and is viral by the original's rule: the best virus score is at least the best
// other score.
function windowsOf(frames, length, window) {
    const windows = [];
    for (const frame of frames) {
        if (windows.at(-1)?.number !== frame.window) {
            const start = windowStart(frame.window, length, window);
            windows.push({ number: frame.window, start, end: Math.min(start + window, length), frames: [] });
        }
        windows.at(-1).frames.push(frame);
    }
    for (const one of windows)
        for (const kind of ["both", "nucleotide", "protein"]) {
            const scores = one.frames.map(frame => frame[kind]);
            if (scores.includes(null)) continue;
            const most = Math.max(...scores),
                least = Math.min(...scores);
            one[kind] = {
                viral: most >= 1 - least,
                score: 1 / (1 + Math.exp(-(logit(most) + logit(least)) / 2)),
            };
        }
    // neighbours overlap: each is drawn up to the middle of what they share
    windows.forEach((one, i) => {
        const after = windows[i + 1];
        one.left ??= one.start;
        one.right = one.end;
        if (after?.number === one.number + 1) one.right = after.left = (one.end + after.start) / 2;
    });
    return windows;
}

const plural = (count, one) => `${number(count)} ${one}${count === 1 ? "" : "s"}`;

// What the call rests on, the main thing first.
function sentences(contigs, row, windows) {
    const call = callOf(contigs, row),
        { criteria } = sampleOf(contigs, row);
    const scored = contigs.scored_windows[row],
        viral = contigs.viral_windows[row],
        score = contigs.score[row];
    const line = `the threshold of ${Number(criteria.min_score.toPrecision(4))}`;
    if (call === "no_call") {
        const why = {
            "too short":
                contigs.length[row] < 3
                    ? "less than three bases hold no codon to read."
                    : `${plural(contigs.length[row], "base")} are fewer than the ${number(criteria.min_length)} that a call takes.`,
            ambiguous: "no window has three A, C, G or T in a row, so nothing can be translated.",
            "no stop free frame": "all six reading frames of every window hold a stop codon.",
            "little evidence": `${plural(contigs.evidence_bp[row], "base")} of evidence are fewer than the ${number(criteria.min_evidence)} that a call takes.`,
        }[reasonOf(contigs, row)];
        return [`No call: ${why}`];
    }
    const speaking = (windows ?? []).filter(one => one.both.viral).flatMap(one => one.frames);
    const strands = new Set(
        speaking.filter(frame => frame.both >= 0.5).map(frame => frame.frame[0].toUpperCase()),
    );
    const where =
        {
            F: ", on the forward strand alone",
            R: ", on the reverse strand alone",
            FR: ", on both strands",
        }[[...strands].sort().join("")] ?? "";
    const by_rate = call === "other" && score >= criteria.min_score && criteria.max_fdr !== null;
    const against = by_rate
        ? `its FDR of ${rate(contigs.fdr[row])} is above the ${criteria.max_fdr} allowed`
        : `its score of ${share(score)} ${call === "virus" ? "reaches" : "stays below"} ${line}`;
    const said = [
        `${LABELS[call]}: ${number(viral)} of ${plural(scored, "scored window")} ${viral === 1 ? "is" : "are"} viral${where}; ${against}.`,
    ];
    const framed = windows?.filter(one => one.frames.some(frame => FRAME_LANES.includes(frame.frame))).length;
    const unframed = windows?.length - framed;
    if (unframed) {
        const one = unframed === 1;
        const which = framed
            ? `${number(framed)} of the windows ${framed === 1 ? "has" : "have"} a stop-free frame; the other${one ? "" : ` ${number(unframed)}`}`
            : `${one ? "Its window has no" : "None of its windows has a"} stop-free frame; ${one ? "it" : "they"}`;
        said.push(`${which} ${one ? "was read by its" : "were read by their"} longest run of codons.`);
    }
    return said;
}

function facts(contigs, row) {
    const value = (name, text) => make("div", {}, make("dt", { text: name }), make("dd", { text }));
    const rows = [
        ["Length", `${number(contigs.length[row])} bp`],
        ["Score", share(contigs.score[row]) || "none"],
        ["Probability", rate(contigs.probability[row])],
        ["FDR", rate(contigs.fdr[row])],
        ["Windows scored", `${number(contigs.scored_windows[row])} of ${number(contigs.windows[row])}`],
        ["Evidence", `${number(contigs.evidence_bp[row])} bp`],
        ["Frames", number(contigs.frames[row])],
    ];
    return make("dl", { class: "pairs" }, ...rows.filter(([, text]) => text).map(pair => value(...pair)));
}

// Windows that are viral by both halves of the classifier's input, as was called, and by each alone.
function halves(windows, called) {
    if (!windows.length || !windows[0].nucleotide) return [];
    const bars = Object.entries({
        both: "Both together",
        nucleotide: "Nucleotides alone",
        protein: "Protein alone",
    }).map(([kind, label]) => {
        const viral = kind === "both" ? called : windows.filter(one => one[kind].viral).length;
        const bar = make("span", { class: "meter" }, make("i"));
        bar.firstChild.style.width = `${(100 * viral) / windows.length}%`;
        return make(
            "tr",
            {},
            make("th", { scope: "row", text: label }),
            make("td", {}, bar),
            make("td", { class: "num", text: `${number(viral)} of ${number(windows.length)}` }),
        );
    });
    const table = make(
        "table",
        { class: "halves" },
        make("caption", {
            text: "Windows that are viral by their nucleotides (DNABERT-S) and their protein (ESM-2), and with either hidden",
        }),
        make("tbody", {}, ...bars),
    );
    return [make("h3", { text: "What speaks for it" }), table];
}

const TABLE_ROWS = 1000;

function windowTable(windows) {
    const halves = windows[0].nucleotide ? ["Nucleotides", "Protein"] : [];
    const head = ["Window", "From", "To", "Frames", "Score", ...halves];
    const heads = head.map((text, i) => make("th", { scope: "col", class: i === 3 ? "" : "num", text }));
    const rows = windows.slice(0, TABLE_ROWS).map(one => {
        const frames = one.frames.map(frame => `${frame.frame} ${frame.both.toFixed(4)}`).join(", ");
        const scores = [one.both, one.nucleotide, one.protein].filter(Boolean);
        const values = [
            ...[one.number, one.start + 1, one.end].map(number),
            frames,
            ...scores.map(({ score }) => score.toFixed(4)),
        ];
        const cells = values.map((text, i) => make("td", { class: i === 3 ? "frames" : "num", text }));
        return make("tr", { class: one.both.viral ? "virus" : "other" }, ...cells);
    });
    const table = make(
        "table",
        {},
        make("thead", {}, make("tr", {}, ...heads)),
        make("tbody", {}, ...rows),
    );
    const many =
        windows.length > TABLE_ROWS ? ` (the first ${number(TABLE_ROWS)} of ${number(windows.length)})` : "";
    return make(
        "details",
        {},
        make("summary", { text: `Windows as a table${many}` }),
        make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Windows" }, table),
    );
}

// Fill the dialog's body with a contig; what is drawn anew when its width changes is returned.
async function showContig(body, contigs, row) {
    const rows = contigs.view_rows[row];
    const [frames, stretches] = await Promise.all([
        rows ? readFrames(contigs.view_at[row], rows) : null,
        readRegions(row),
    ]);
    const windows = frames && windowsOf(frames, contigs.length[row], sampleOf(contigs, row).window);
    const [first, ...rest] = sentences(contigs, row, windows);
    if (stretches.length)
        rest.unshift(
            `Within it, viral: ${stretches.map(([start, end, count]) => `${number(start + 1)}–${number(end)} (${plural(count, "window")})`).join(", ")}.`,
        );
    body.replaceChildren(
        make("p", { class: "says", text: first }),
        ...rest.map(text => make("p", { class: "dim", text })),
        facts(contigs, row),
    );
    if (!windows) {
        if (contigs.scored_windows[row])
            body.append(
                make("p", {
                    class: "dim",
                    text: `This page holds the frames of ${number(about.views)} contigs, this one's not; they are in frames.parquet and windows.tsv beside contigs.tsv.`,
                }),
            );
        return () => {};
    }
    const place = make("div", { class: "map-place" });
    body.append(
        make("div", { class: "headed" }, make("h3", { text: "Along the sequence" }), legend()),
        place,
    );
    const note = make("p", { class: "dim small" });
    body.append(note, ...halves(windows, contigs.viral_windows[row]), windowTable(windows));
    const draw = () => {
        const { svg, together } = drawMap(
            windows,
            stretches,
            contigs.length[row],
            Math.max(place.clientWidth, 300),
        );
        place.replaceChildren(svg);
        const notes = ["F and R are the reading frames of the two strands."];
        if (frames.some(frame => !FRAME_LANES.includes(frame.frame)))
            notes.push("A thin mark is the longest run of codons in a window without a stop-free frame.");
        if (together > 1) notes.push(`Each mark is the mean of ${together} neighbouring windows.`);
        note.textContent = notes.join(" ");
    };
    draw();
    return draw;
}
