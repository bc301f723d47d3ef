"""What the commands of `replay` say of their documents, for people."""

from __future__ import annotations

from typing import Any

from forensics.cli.console import cell, say, table


def plan(p: dict[str, Any]) -> None:
    say(f"{p['fork']}: {p['parent']} from state {p['from']} to {p['to']}, {p['does']}")
    if p["sequences"]:
        steps = sorted(p["sequences_by_step"])
        say(
            f"{p['sequences']} sequences of {len(steps)} steps ({steps[0]} to {steps[-1]}) are"
            f" touched, {p['tokens']:,} targets, {len(p['documents'])} documents"
        )
    say(
        f"{p['arms']} arms, {p['steps_to_compute']:,} steps, about {p['hours']:.3f} hours,"
        f" {p['memory_bytes'] / 2**20:,.0f} MiB of states"
    )


def fork(r: dict[str, Any]) -> None:
    final = r["final"]
    if not r["control"]["bitwise"]:
        say("TOLERANCE ONLY")
    say(f"{r['fork']} {r['does']}, from state {r['from']} to {r['to']}")
    say(f"control: {r['control']['level']}; {r['control']['sentence']}")
    if final["loss_fork"] is not None:
        gap = final["loss_fork"] - final["loss_control"]
        say(
            f"probe loss {final['loss_control']:.3f} → {final['loss_fork']:.3f} ({gap:+.3f} ±"
            f" {final['loss_error'] or 0:.3f}, {final['probe_sequences']} sequences), KL"
            f" {final['logit_kl']:.3g}, L2 {final['l2']:.3g}"
        )
    fresh = final["unseen"]
    if fresh["sequences"]:
        gap = fresh["loss_fork"] - fresh["loss_control"]
        say(
            f"on {fresh['sequences']} sequences that no arm has consumed: {gap:+.3f} ±"
            f" {fresh['loss_error'] or 0:.3f}"
        )
    for each in r["barriers"]:
        if each["arm"] == "fork":
            say(
                f"barrier at state {each['step']}: {each['height']:.4f} nats, at α ="
                f" {each['alpha']:.1f} of the line"
            )
    times = (
        f"{final['effect']:.3g} times the placebos' median, p = {final['p']:.2g}, N ="
        f" {final['placebos']}: "
        if final["effect"] is not None
        else ""
    )
    say(times + final["verdict"])
    if r["time_to_reconverge"] is not None:
        say(f"back among the placebos after {r['time_to_reconverge']} steps")
    elif r["censored"]:
        say(f"not back among the placebos within the window ({r['censored']} steps)")


def matrix(m: dict[str, Any]) -> None:
    first, last = m["batches"]
    titles = {
        "jump": "jump of the probe loss after one step, over the placebo batches' median (nats)",
        "loss": "loss of the batch at the state (nats)",
        "grad_norm": "gradient norm of the batch at the state",
    }
    for measure, title in titles.items():
        say(f"{title}; * the state has already been trained on the batch")
        rows = []
        for s in m["states"]:
            own = [c for c in m["cells"] if c["state"] == s]
            rows.append([s, *(cell(c[measure]) + ("*" if c["consumed"] else "") for c in own)])
        table(["state", *(str(b) for b in range(first, last))], rows)
        effects = m["effects"][measure]
        if effects is None:
            say("no effects: a cell is missing or not finite")
        else:
            over = effects["over_placebo"]
            say(
                ", ".join(
                    f"{name} {effects['size'][name]:.3g}"
                    + (f" ({over[name]:.3g} × placebo scale)" if over[name] is not None else "")
                    for name in ("data", "state", "interaction")
                )
                + f"; {m['placebos']} placebo batches"
            )
        say()


def windows(m: dict[str, Any]) -> None:
    first, last = m["batches"]
    say(
        f"batches {first}:{last} of {m['run']} from each state; * it has already been trained on"
        " some of them"
    )
    rows = [
        [
            f"{w['state']}{'*' if w['consumed'] else ''}",
            w["peak"],
            w["placebo_median"],
            w["sigma"],
            w["spiked"],
            w["jump"],
        ]
        for w in m["windows"]
    ]
    table(["state", "highest loss", "placebo loss", "sigma", "spikes", "probe jump after"], rows)


def sweep(s: dict[str, Any]) -> None:
    if not all(row["bitwise"] for row in s["summary"]):
        say("TOLERANCE ONLY")
    say(
        f"{s['does']} (as written from {s['from']}), over {s['horizon']} steps of {s['run']} from"
        " each step"
    )
    say(
        f"arm own: the run's learning rate; arm equal: {s['equal_learning_rate']:.3g} throughout,"
        " in control and fork"
    )
    rows = [
        [
            r["step"],
            r["arm"],
            r["learning_rate"],
            r["l2"],
            r["l2_over_moved"],
            r["over_placebos"],
            r["p"],
            r["placebos"],
            (
                r["time_to_reconverge"]
                if r["time_to_reconverge"] is not None
                else f"> {s['horizon']}"
                if r["placebos"]
                else None
            ),
        ]
        for r in s["summary"]
    ]
    table(
        ["step", "arm", "lr", "l2", "l2/moved", "× placebos", "p", "N", "reconverges after"], rows
    )


def attention(a: dict[str, Any], top: int) -> None:
    if False in a["exact"]:
        say("TOLERANCE ONLY")
    say(
        f"{a['run']} batch {a['step']}, slot {a['slot']} (sequence {a['sequence']}), at the states"
        f" {', '.join(map(str, a['states']))}"
    )
    say(
        "\nlargest attention logit, and share of the attention that went elsewhere since the first"
        " state"
    )
    heads = sorted(a["heads"], key=lambda h: -max(h["moved"]))[:top]
    table(
        ["head", *(f"logit @{s}" for s in a["states"]), *(f"moved @{s}" for s in a["states"][1:])],
        [[f"L{h['layer']}.H{h['head']}", *h["logit_max"], *h["moved"][1:]] for h in heads],
    )
    if a["lens_loss"]:
        say("\nlogit lens: loss read out after each layer")
        table(
            ["state", "embedding", *(f"L{i}" for i in range(len(a["lens_loss"][0]) - 1))],
            [[s, *row] for s, row in zip(a["states"], a["lens_loss"])],
        )
    elif a["why"]:
        say(f"\nno logit lens: {a['why']}")
    say(f"\nkept in {a['file']}")


def trace(t: dict[str, Any], top: int) -> None:
    same = {
        True: "the recorded step, bit for bit",
        False: "NOT the recorded step: tolerance only",
        None: "no digest was recorded",
    }
    say(f"{t['run']} step {t['step']} beside step {t['baseline']}: {same[t['exact']]}")
    say("\nin order")
    rows = []
    for e in t["events"]:
        if e["phase"] == "update":
            continue
        shown = "  ".join(
            f"{n} {v:.4g}" + (f" ({e['ratio'][n]:.2f}×)" if e["ratio"].get(n) else "")
            for n, v in e["values"].items()
            if v is not None
        )
        rows.append([round(e["start"] * 1e3, 2), round(e["seconds"] * 1e3, 2), e["name"], shown])
    table(["at ms", "ms", "event", "values (ratio to the step before)"], rows)
    say("\nmoved most")
    table(
        ["event", "what", "value", "before", "ratio"],
        [
            [r["event"], r["what"], r["value"], r["baseline"], r["ratio"]]
            for r in t["largest"][:top]
        ],
    )
    blame = t["layer_blame"]
    say(
        f"\nupdate {t['baseline']} moved the loss of batch {t['step']} by"
        f" {blame['rise_batch']:+.4f} (what the moments carried {blame['memory_batch']:+.4f}, what"
        f" the data added {blame['data_batch']:+.4f})"
    )
    table(
        ["tensor", "alone", "all but it"],
        [[r["tensor"], r["alone_batch"], r["without_batch"]] for r in blame["tensors"][:top]],
    )
    say("\nalong the update")
    table(["α", "batch", "probe"], [[r["alpha"], r["batch"], r["probe"]] for r in t["line_scan"]])
