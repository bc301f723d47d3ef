"""The schema: every table, every column, with unit and meaning.

Writer, reader, views and docs are made from it.

A run's tables lie in `runs/<run>/tables/<table>/`; the column `run` is not stored, it comes from
the folder.
"""

from __future__ import annotations

from forensics.rollup_schema import rollup
from forensics.statistics import heads, layers, tensors
from forensics.statistics.heads import HeadStatistic
from forensics.statistics.layers import LayerStatistic
from forensics.statistics.tensors import TensorStatistic
from forensics.table_schema import Column, Table, columns

Statistic = HeadStatistic | LayerStatistic | TensorStatistic


def _float(statistic: Statistic) -> tuple[str, str, str, str]:
    """Return the column of a statistic, which is stored as float32."""
    return statistic.column, "float32", statistic.unit, statistic.meaning


STEP = ("step", "int64", "step", "batch `step` takes state `step` to state `step`+1")
LAYER = ("layer", "int32", "", "decoder block, from 0")

RUNS = Table(
    "runs",
    "run",
    ("name",),
    columns(
        ("name", "string", "", "the run's id, which is its folder's name"),
        ("parent", "string", "", "the run this is a fork of; NULL for a run of its own"),
        ("parent_step", "int64", "step", "the parent's state this fork starts from"),
        (
            "parent_created",
            "string",
            "UTC",
            "when the parent was made, where that is no fork: which run of its name",
        ),
        ("status", "string", "", "running | finished | interrupted | failed"),
        ("recipe", "string", "", "name of the recipe"),
        ("config", "string", "JSON", "the whole configuration"),
        (
            "interventions",
            "string",
            "JSON",
            "what differs from the parent; NULL for a run of its own",
        ),
        ("first_step", "int64", "step", "first step of this run's own tables"),
        ("steps", "int64", "step", "the step at which the run ends"),
        ("parameters", "int64", "parameters", "number of trained numbers"),
        ("corpus", "string", "", "content hash of the tokenised data"),
        ("device", "string", "", "cpu, or the name of the GPU"),
        (
            "fingerprint",
            "string",
            "JSON",
            "what the bits depend on: versions, device, threads, switches",
        ),
        ("git_commit", "string", "", "of this software, with + when the tree was dirty"),
        ("arguments", "string", "JSON", "the command line as given"),
        ("created", "string", "UTC", "when the run started"),
    ),
)

CHECKPOINTS = Table(
    "checkpoints",
    "saved state",
    ("step",),
    columns(
        ("step", "int64", "step", "the checkpoint holds the state after `step` updates"),
        ("path", "string", "", "folder, relative to the run's folder"),
        (
            "digest",
            "string",
            "xxh3_128",
            "digest of the state, as in `steps.state_digest` of step-1",
        ),
        ("bytes", "int64", "bytes", "size on disk"),
        (
            "nonfinite",
            "int64",
            "count",
            "numbers of the state that are NaN or infinite; nothing trained from there is finite",
        ),
        ("reason", "string", "", "first | every | last | interrupted | ring | imported"),
        ("created", "string", "UTC", "when it was written"),
    ),
    of_state=True,
)

EVENTS = Table(
    "events",
    "spike, NaN, resume, note",
    ("step",),
    columns(
        ("step", "int64", "step", "the step it happened at; of a spike, the peak"),
        (
            "kind",
            "string",
            "",
            "spike | nonfinite | repeat | ring | resume | interrupt | alarm | note",
        ),
        ("metric", "string", "", "column that showed it"),
        ("value", "float64", "", "its value there"),
        ("baseline", "float64", "", "median of its window"),
        ("sigma", "float64", "σ", "(value − baseline) / the scale of the band"),
        ("spike_kind", "string", "", "batch | fast | slow"),
        ("onset", "int64", "step", "first outlying step of the spike"),
        ("recovered_at", "int64", "step", "first of five steps in a row back in the band"),
        ("tensor", "string", "", "first tensor or site in which it appeared"),
        ("text", "string", "", "a note, or a sentence about the event"),
        ("created", "string", "UTC", "when it was written"),
    ),
)

CERTIFICATES = Table(
    "certificates",
    "proven window",
    ("first",),
    columns(
        ("first", "int64", "step", "first step of the window"),
        ("last", "int64", "step", "the window is first:last, half-open"),
        ("bitwise", "bool", "", "every digest and every recorded loss was equal"),
        ("level", "string", "", "exact | reproduces | absent"),
        (
            "compared",
            "int64",
            "step",
            "how many steps had a recorded digest or loss to compare with",
        ),
        ("first_difference", "int64", "step", "first step that differed; NULL when none did"),
        ("max_abs_difference", "float64", "nats", "largest difference of a recorded loss"),
        ("fingerprint_equal", "bool", "", "this machine's fingerprint is the run's own"),
        ("fingerprint", "string", "JSON", "of the machine that replayed"),
        ("source", "string", "", "verify | fork"),
        ("created", "string", "UTC", "when it was proven"),
    ),
)

STEPS = Table(
    "steps",
    "step",
    ("step",),
    columns(
        STEP,
        (
            "loss",
            "float64",
            "nats/token",
            "cross-entropy: Σ weight·ce / denominator; NULL where nothing was computed",
        ),
        (
            "held_out_loss",
            "float64",
            "nats/token",
            "loss of the held-out sequences at state `step`+1, where measured",
        ),
        ("lr", "float64", "", "learning rate of this update"),
        ("grad_norm", "float64", "", "‖g‖₂ over all parameters, before clipping"),
        (
            "clip_scale",
            "float64",
            "",
            "factor that clipping multiplied the gradient by; 1 when it did not clip",
        ),
        ("update_norm", "float64", "", "‖θ_{s+1}−θ_s‖₂ with decay"),
        ("param_norm", "float64", "", "‖θ_s‖₂"),
        ("logit_max", "float64", "", "largest output logit over (B, T, V)"),
        ("logit_rms", "float64", "", "√mean of the squared output logits (arXiv 2309.14322)"),
        ("logz_mean", "float64", "nats", "mean over positions of logsumexp over V (PaLM)"),
        ("logz_max", "float64", "nats", "largest logsumexp over V"),
        ("output_entropy", "float64", "nats", "−Σ p log p over V, mean over positions"),
        ("tokens", "int64", "tokens", "targets with a weight other than 0"),
        ("schedule", "int64", "step", "the schedule's own counter before the step"),
        ("updates", "int64", "updates", "updates applied before the step (bias correction)"),
        (
            "update",
            "string",
            "",
            "apply | hold | zero | none | skipped: what was done with the gradient",
        ),
        ("seconds", "float64", "s", "wall time of the step"),
        (
            "state_digest",
            "string",
            "xxh3_128",
            "of state `step`+1: parameters, moments, counters, windows",
        ),
    ),
)

METRICS = Table(
    "metrics",
    "step × name, of what the log of a run made elsewhere holds beside loss, lr and grad_norm",
    ("step", "name"),
    columns(
        (
            "step",
            "int64",
            "step",
            "the batch it was logged with, as ours count; below 0: logged before the first",
        ),
        ("name", "string", "", "as its log names it"),
        ("value", "float64", "", "as it was logged"),
        ("logged_step", "int64", "step", "the number that it was logged under"),
    ),
)

LAYERS = Table(
    "layers",
    "step × layer",
    ("step", "layer"),
    columns(
        STEP,
        LAYER,
        *(_float(each) for each in layers.STATISTICS),
    ),
)

HEADS = Table(
    "heads",
    "step × layer × head",
    ("step", "layer", "head"),
    columns(
        STEP,
        LAYER,
        ("head", "int32", "", "query head, from 0"),
        *(_float(each) for each in heads.STATISTICS),
    ),
)

TENSORS = Table(
    "tensors",
    "step × parameter tensor",
    ("step", "tensor"),
    columns(
        STEP,
        ("tensor", "string", "", "name of the parameter tensor"),
        *(_float(each) for each in tensors.STATISTICS),
    ),
)

SEQUENCES = Table(
    "sequences",
    "step × slot in the batch",
    ("step", "slot"),
    columns(
        STEP,
        ("slot", "int32", "", "row of the batch, from 0"),
        ("sequence", "int64", "", "id in the corpus; −1 for one made by an intervention"),
        ("loss", "float32", "nats/token", "mean cross-entropy over the sequence's counted targets"),
        ("weight", "float32", "tokens", "sum of the weights of its targets"),
        (
            "repeat_share",
            "float32",
            "share",
            "tokens inside an n-gram (n = 1…13) repeated 32 or more times in a row (OLMo 2)",
        ),
    ),
)

TOKENS = Table(
    "tokens",
    "step × slot × position (dense windows only)",
    ("step", "slot", "position"),
    columns(
        STEP,
        ("slot", "int32", "", "row of the batch"),
        ("position", "int32", "", "of the target, from 0"),
        ("token", "int32", "", "the target's id"),
        ("loss", "float32", "nats", "cross-entropy of this target"),
        ("weight", "float32", "", "its weight in the loss"),
    ),
)

DOCUMENTS = Table(
    "documents",
    "document",
    ("document",),
    columns(
        ("document", "int64", "", "id, counted over all sources in the order of the recipe"),
        ("source", "string", "", "name of the source in the recipe"),
        ("path", "string", "", "where the text came from"),
        ("first_token", "int64", "tokens", "offset of its first token in its source's stream"),
        ("tokens", "int64", "tokens", "number of tokens, the end-of-text token included"),
        ("hash", "string", "xxh3_128", "of the text's bytes"),
        ("tags", "string", "", "comma-separated marks, such as `repeats`"),
        (
            "repeat_share",
            "float32",
            "share",
            "tokens inside an n-gram repeated 32 or more times in a row",
        ),
    ),
    open_column=Column(
        "attributes",
        "struct",
        "",
        "the other fields of its record, each under its dotted name and of one type:"
        " `attributes.quality < 0.3`, `attributes.\"meta.lang\" = 'en'`,"
        " `list_contains(attributes.tags, 'web')`; NULL where it has none",
    ),
)

VOCABULARY = Table(
    "vocabulary",
    "checkpoint × token",
    ("step", "token"),
    columns(
        ("step", "int64", "step", "the state after `step` updates"),
        ("token", "int32", "", "id"),
        ("text", "string", "", "the token as text"),
        ("category", "string", "", "as in arXiv 2405.05417"),
        (
            "indicator",
            "float32",
            "",
            "low is suspect; untied ‖E_in‖, tied cosine distance to unused rows",
        ),
        ("exposure_in", "int64", "count", "times it was an input in applied steps"),
        ("exposure_out", "int64", "count", "times it was a counted target in applied steps"),
        (
            "exposure_grad",
            "int64",
            "count",
            "input positions from which some counted target is reachable",
        ),
        ("documents", "int64", "count", "distinct documents it was met in"),
        ("first_seen", "int64", "step", "first applied step that met it; NULL: none did"),
        ("last_seen", "int64", "step", "last applied step that met it"),
        (
            "cause",
            "string",
            "",
            "why it is under-trained, the strongest reason; NULL: none is known",
        ),
    ),
    of_state=True,
)

FORKS = Table(
    "forks",
    "fork",
    ("fork",),
    columns(
        ("fork", "string", "", "the fork's id"),
        ("parent", "string", "", "the run it left"),
        ("first", "int64", "step", "the state it starts from"),
        ("last", "int64", "step", "the window is first:last, half-open"),
        ("interventions", "string", "JSON", "what differs"),
        ("sentence", "string", "", "the same in words"),
        ("control_level", "string", "", "exact | reproduces | absent"),
        ("control_bitwise", "bool", "", "the control equalled the parent bit for bit"),
        ("loss_control", "float64", "nats/token", "probe loss of the control at the end"),
        ("loss_fork", "float64", "nats/token", "probe loss of the fork at the end"),
        (
            "loss_error",
            "float64",
            "nats/token",
            "standard error of their difference over the probe sequences",
        ),
        ("probe_sequences", "int64", "sequences", "size of the probe set"),
        (
            "unseen_gap",
            "float64",
            "nats/token",
            "loss of fork − control at the end, on sequences that no arm has consumed",
        ),
        ("unseen_sequences", "int64", "sequences", "how many of those"),
        ("logit_kl", "float64", "nats", "mean KL(control ‖ fork) on the probe set at the end"),
        ("l2", "float64", "", "‖θ_fork − θ_control‖₂ at the end"),
        ("cosine", "float64", "", "cosine of the two displacements from the start"),
        ("placebos", "int64", "", "number of placebo forks"),
        ("chaos", "int64", "", "number of chaos forks"),
        ("effect", "float64", "×", "KL (L2 where nothing is held out) over the placebos' median"),
        ("p", "float64", "", "(1 + placebos at least as far) / (placebos + 1)"),
        (
            "time_to_reconverge",
            "int64",
            "step",
            (
                "steps until d stays at or below the placebos' 95th percentile; NULL: not within"
                " the window"
            ),
        ),
        ("created", "string", "UTC", "when it was made"),
    ),
)

DIVERGENCE = Table(
    "divergence",
    "fork × step (× tensor)",
    ("step", "arm", "tensor"),
    columns(
        ("step", "int64", "step", "the states compared are those after `step` updates"),
        ("arm", "string", "", "fork | placebo-<i> | chaos-<i>: what is compared with the control"),
        (
            "tensor",
            "string",
            "",
            "a tensor's name; `layers.<i>.*` for a whole layer; the empty string for all together",
        ),
        ("layer", "int32", "", "the layer that it belongs to; NULL where it belongs to none"),
        ("l2", "float64", "", "‖θ_arm − θ_control‖₂"),
        ("cosine", "float64", "", "cosine of θ_arm − θ_start and θ_control − θ_start"),
        (
            "loss_gap",
            "float64",
            "nats/token",
            "probe loss of the arm − of the control, where probed",
        ),
        (
            "unseen_gap",
            "float64",
            "nats/token",
            "the same on sequences that no arm has consumed, where probed",
        ),
        ("logit_kl", "float64", "nats", "mean KL(control ‖ arm) on the probe set, where probed"),
        (
            "barrier",
            "float64",
            "nats",
            (
                "height of the loss between arm and control on the line that joins them, at chosen"
                " states"
            ),
        ),
    ),
    of_state=True,
)

BLAME = Table(
    "blame",
    "candidate cause",
    ("spike", "rank"),
    columns(
        ("spike", "int64", "step", "the spike that is explained"),
        ("rank", "int32", "", "from 0, the strongest first"),
        ("step", "int64", "step", "the batch"),
        ("slot", "int32", "", "the sequence's row in it"),
        ("sequence", "int64", "", "its id in the corpus"),
        ("document", "int64", "", "the document that supplies most of it"),
        ("source", "string", "", "that document's source"),
        (
            "part",
            "string",
            "",
            "data: a sequence of the spike's own batch; state: of a batch before it",
        ),
        (
            "influence",
            "float64",
            "nats",
            "d(state part)/d weight; of the spike's own batch, its share of the data part",
        ),
        (
            "replayed_effect",
            "float64",
            "nats",
            "what goes of the excess when it alone is removed by replay",
        ),
        ("method", "string", "", "metagradient | leave-one-out | bisect"),
    ),
)

ROLLUPS: dict[str, Table] = {  # by the table that is rolled up
    STEPS.name: rollup(STEPS, means=True),
    **{t.name: rollup(t) for t in (LAYERS, HEADS, TENSORS)},
}

TABLES: dict[str, Table] = {
    t.name: t
    for t in (
        RUNS,
        CHECKPOINTS,
        EVENTS,
        CERTIFICATES,
        STEPS,
        METRICS,
        LAYERS,
        HEADS,
        TENSORS,
        SEQUENCES,
        TOKENS,
        DOCUMENTS,
        VOCABULARY,
        FORKS,
        DIVERGENCE,
        BLAME,
        *ROLLUPS.values(),
    )
}

LIGHT = ("steps", "layers", "heads", "tensors", "sequences")  # recorded at every step by default
